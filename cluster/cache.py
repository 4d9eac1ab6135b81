"""Expensive results, kept outside the checkout by the hash of what they are made from.

`produce(folder, build)` is the whole mechanism: where `folder` exists it is complete, because it is built under
another name and renamed into place. A run that is interrupted leaves only a temporary folder, which the next run
removes; two runs that want the same folder wait for each other on a file lock, which the kernel releases when its
holder dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def root() -> Path:
    """`$XDG_CACHE_HOME/headrace`, by default `~/.cache/headrace`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "headrace"


def digest(*parts: str | bytes) -> str:
    """Twelve hex digits that change when any part does."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.hexdigest()[:12]


def digest_files(base: Path, paths: list[Path]) -> str:
    """`digest` of files and of all files in folders, by their names relative to `base` and their bytes.

    Byte code is left out. Raises FileNotFoundError for a path that is not there.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += [p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        else:
            files.append(path)
    parts: list[str | bytes] = []
    for file in sorted(set(files)):
        parts += [str(file.relative_to(base)), file.read_bytes()]
    return digest(*parts)


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the named lock; says so when another process has it, and waits."""
    path = root() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that works on {name}…")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def produce(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, filled by `build(temporary folder)` when it does not exist yet."""
    if folder.is_dir():
        return folder
    with lock(folder.name):
        if folder.is_dir():
            return folder
        temporary = folder.parent / f".{folder.name}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        build(temporary)
        temporary.rename(folder)
    return folder


def say(line: str) -> None:
    """A progress line: on stderr, so that what a command prints for other programs stays clean."""
    sys.stderr.write(f"{line}\n")  # in one piece: several threads may have something to say
    sys.stderr.flush()
