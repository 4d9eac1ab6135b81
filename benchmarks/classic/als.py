"""Our half of the comparison on MovieLens-100k: two workers, one thread each. Run inside the trainer image.

Writes what it found, and which rows were test rows, for the other half: `rivals.py`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.classic import group
from benchmarks.parameter_server.machine import machine
from headrace.training.classic.rows import chosen_for_test

EXPLICIT = {"factors": 10, "iterations": 15, "regularization": 0.1}
IMPLICIT = {"factors": 32, "iterations": 15, "regularization": 0.1, "regularizeByCount": False, "alpha": 1.0}
RATINGS, TIMES = 100_000, 3


def main() -> None:
    """Write the figures."""
    found: dict[str, Any] = {"machine": machine(), "explicit": [], "implicit": [], "settings": [EXPLICIT, IMPLICIT]}
    common = {"uri": "file:///data/ratings.parquet"}
    with tempfile.TemporaryDirectory(dir="/data") as folder:
        for index in range(TIMES):
            for name, settings in (("explicit", EXPLICIT), ("implicit", IMPLICIT | {"objective": "Implicit"})):
                said = group.trained("matrixFactorization", common | settings, 2, Path(folder) / f"{name}-{index}")
                found[name].append(said["metrics"] | {"seconds": said["seconds"]})
    np.save("/data/test.npy", chosen_for_test(0, RATINGS, 0.2, 0))
    Path("/data/ours.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
