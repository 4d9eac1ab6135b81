"""A virtual environment for each server that is compared: made once from its locked list, kept in the cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

SERVERS = Path(__file__).with_name("servers")


def cache() -> Path:
    """Where environments are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / "bench-serving"


def python(name: str) -> Path:
    """The interpreter of a server's environment, which is made when there is none for its list yet.

    Raises:
        subprocess.CalledProcessError: a package cannot be had.
    """
    requirements = SERVERS / f"{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = cache() / f"{name}-{digest}"
    interpreter = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        uv = os.environ.get("UV", "uv")
        sys.stderr.write(f"{name}: environment in {folder}…\n")
        venv: list[str | Path] = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder]
        subprocess.run(venv, check=True)
        install: list[str | Path] = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--python",
            interpreter,
            "--requirement",
            requirements,
        ]
        subprocess.run(install, check=True)
        complete.touch()
    return interpreter


def version(name: str, package: str) -> str:
    """The pinned version of a package in a server's list."""
    for line in (SERVERS / f"{name}.txt").read_text().splitlines():
        found, _, pinned = line.partition("==")
        if found.split("[")[0] == package:
            return pinned.split()[0]
    raise ValueError(f"{name}.txt does not pin {package}")
