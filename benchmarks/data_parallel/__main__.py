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
    command += [images.tag("trainer"), "-m", "benchmarks.data_parallel.measure"]
    done = subprocess.run(
        command, env=os.environ | host.docker_environment(), check=True, stdout=subprocess.PIPE, text=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    facts = {"benchmark": "data_parallel", "cpus": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({**facts, "load": round(os.getloadavg()[1], 1), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
