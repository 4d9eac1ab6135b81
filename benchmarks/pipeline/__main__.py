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
import subprocess
import sys
from pathlib import Path

from cluster import host, images

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run the measurement in the trainer image and print its line."""
    host.ensure_docker()
    images.build("trainer")
    command = ["docker", "run", "--rm", "--init", "--network=none", "--read-only", "--tmpfs=/tmp:exec,mode=1777"]
    command += [f"--volume={ROOT / 'benchmarks'}:/repo/benchmarks:ro", "--workdir=/repo", "--entrypoint=python"]
    command += [images.tag("trainer"), "-m", "benchmarks.pipeline.measure"]
    done = subprocess.run(
        command, env=os.environ | host.docker_environment(), check=True, stdout=subprocess.PIPE, text=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"benchmark": "pipeline", "cpus": os.cpu_count(), "python": platform.python_version(), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
