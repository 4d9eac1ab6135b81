"""`python -m tests.image.run [pytest arguments]`: the tests of this folder inside the trainer image, built if missing.

The workers run the package and the libraries of the image. pytest itself, which the image lacks, comes from the
environment that this runs in, as the last place where Python looks; it is pure Python, so the versions may differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from cluster import cache, host, images

ROOT = Path(__file__).parents[2]
START = (
    "import sys; sys.path.append('/opt/pytest'); sys.path.insert(0, '/repo'); import pytest; "
    "sys.exit(pytest.main(sys.argv[1:]))"
)


def main(arguments: list[str]) -> int:
    """Build the image where needed, run the tests, and return pytest's exit code."""
    host.ensure_docker()
    images.build("trainer")
    image = images.tag("trainer")
    cache.say(f"Tests inside {image}…")
    options = ["--rm", "--init", "--network=none", "--read-only", "--tmpfs=/tmp:exec,mode=1777", "--workdir=/repo"]
    options += ["--tmpfs=/full:size=600k,mode=1777"]  # a disk for test_checkpoints to fill
    options += [f"--volume={ROOT}:/repo:ro", f"--volume={sysconfig.get_path('purelib')}:/opt/pytest:ro"]
    options += ["--env=PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", "--entrypoint=python"]
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    command = ["docker", "run", *options, image, "-c", START, *plugins, *(arguments or ["tests/image"])]
    return subprocess.run(command, env=os.environ | host.docker_environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
