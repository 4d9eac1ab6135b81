"""The bubble of a pipeline against its formula: `python -m benchmarks.pipeline`. Prints one JSON line.

Runs in the trainer image. A stage here takes a fixed time instead of computing (10 ms forward, 20 ms backward, split in
two halves under interleaving), so the machine's cores do not decide and what is left is the schedule: where processes
wait, and what handing tensors over costs. With p stages and m microbatches GPipe and 1F1B idle for (p-1)/(m+p-1) of the
time (Huang et al. 2019), two interleaved stages per process for (p-1)/(2m+p-1) (Narayanan et al. 2021, section 2.2).
"""

from __future__ import annotations

import json
import os
import platform
import sys

from benchmarks.in_trainer import measured


def main() -> int:
    """Run the measurement in the trainer image and print its line."""
    figures = measured("benchmarks.pipeline.measure")
    facts = {"benchmark": "pipeline", "cpus": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({**facts, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
