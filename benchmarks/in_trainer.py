"""Measurements with PyTorch: a module of a benchmark, run in the trainer's image."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from cluster import host, images

BENCHMARKS = Path(__file__).parent


def measured(module: str) -> dict[str, Any]:
    """What `python -m <module>` in the trainer's image printed last, a line of JSON.

    Raises:
        ClusterError: the image cannot be built.
        subprocess.CalledProcessError: the measurement failed; its output is on standard error.
    """
    host.ensure_docker()
    images.build("trainer")
    command = ["docker", "run", "--rm", "--init", "--network=none", "--read-only", "--tmpfs=/tmp:exec,mode=1777"]
    command += [f"--volume={BENCHMARKS}:/repo/benchmarks:ro", "--workdir=/repo", "--entrypoint=python"]
    command += [images.tag("trainer"), "-m", module]
    environment = os.environ | host.docker_environment()
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
