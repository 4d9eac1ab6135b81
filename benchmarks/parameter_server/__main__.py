"""Parameter servers on one machine: `python -m benchmarks.parameter_server [part ...]`. Prints one JSON line per part.

    transport     a payload to a peer and one of the same size back, over four transports
    stragglers    time to a target loss where one of three workers is slowed five times
    compression   bytes and accuracy on the digits

All processes run in the trainer image, on loopback, and share the machine's cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster import host, images

ROOT = Path(__file__).parents[2]
PARTS = ("transport", "stragglers", "compression")


def main(parts: list[str]) -> int:
    """Run parts in the trainer image; the first exit code that is not 0."""
    host.ensure_docker()
    images.build("trainer")
    options = ["--rm", "--init", "--network=none", "--read-only", "--tmpfs=/tmp:exec,mode=1777", "--shm-size=1g"]
    options += ["--workdir=/repo", f"--volume={ROOT}:/repo:ro", "--env=PYTHONPATH=/repo", "--env=OMP_NUM_THREADS=1"]
    options += ["--env=PYTHONWARNINGS=ignore", "--entrypoint=python"]
    for part in parts or PARTS:
        command = ["docker", "run", *options, images.tag("trainer"), "-m", f"benchmarks.parameter_server.{part}"]
        code = subprocess.run(command, env=os.environ | host.docker_environment(), check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
