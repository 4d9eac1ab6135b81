"""A step of DistributedDataParallel in our runner against bare torchrun: `python -m benchmarks.data_parallel`.

Runs in the trainer image: two processes with one thread each, the same model and the same loop. Bare: torchrun, and
nothing else. Ours: an agent per worker as in a job, and in the loop `run.report`, `run.checkpoints.due` and
checkpoints every 5 s to local storage. The two take turns of eight steps, so that other
load meets both. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import platform
import sys

from benchmarks.in_trainer import measured


def main() -> int:
    """Run the measurement in the trainer image and print its line."""
    figures = measured("benchmarks.data_parallel.measure")
    facts = {"benchmark": "data_parallel", "cpus": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({**facts, "load": round(os.getloadavg()[1], 1), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
