"""`python -m tests.image.run [pytest arguments]`: the tests of this folder inside the images, built if missing.

Those of training run in the trainer image, those of `serving/` in the serving image that has their library. All run the
package and the libraries of the image. pytest itself, which the images lack, comes from the environment that this runs
in, as the last place where Python looks; it is pure Python, so the versions may differ. With arguments, all of them go
to the image that has the first path's tests.
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


IMAGES = {
    "serving-torch": "tests/image/serving/test_torch_model.py",
    "serving-pmml": "tests/image/serving/test_pmml_model.py",
}
"""Image by the tests that run in it; all others run in the trainer's."""


def main(arguments: list[str]) -> int:
    """Build the images where needed, run the tests, and return pytest's exit code."""
    host.ensure_docker()
    if arguments:
        special = [name for name, path in IMAGES.items() if any(path in argument for argument in arguments)]
        return run(special[0] if special else "trainer", arguments)
    codes = [run("trainer", ["tests/image", "--ignore=tests/image/serving"])]
    codes += [run(name, [path]) for name, path in IMAGES.items()]
    return max(codes)


def run(name: str, arguments: list[str]) -> int:
    """Run tests in an image and return pytest's exit code."""
    images.build(name)
    image = images.tag(name)
    cache.say(f"Tests inside {image}…")
    options = ["--rm", "--init", "--network=none", "--read-only", "--tmpfs=/tmp:exec,mode=1777", "--workdir=/repo"]
    options += ["--tmpfs=/full:size=600k,mode=1777"]  # a disk for test_checkpoints to fill
    options += [f"--volume={ROOT}:/repo:ro", f"--volume={sysconfig.get_path('purelib')}:/opt/pytest:ro"]
    options += ["--env=PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", "--entrypoint=python"]
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    command = ["docker", "run", *options, image, "-c", START, *plugins, *arguments]
    return subprocess.run(command, env=os.environ | host.docker_environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
