"""Running other programs: output in a log file, a sign of life on long ones, errors that show the end of the log."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster import cache

SIGN_OF_LIFE = 30.0
"""Seconds of silence after which a long step says how long it has been running."""


class ClusterError(RuntimeError):
    """Something that the person at the keyboard can act on; its text says what and how."""


def run_logged(
    command: Sequence[str | Path],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    hint: str = "",
) -> None:
    """Run `command` with its output appended to `log`.

    `env` adds to the environment. Raises ClusterError with the last lines of the log and `hint` when the command fails.
    """
    words = [str(word) for word in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"$ {' '.join(words)}\n".encode())
        file.flush()
        try:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd, env={**os.environ, **(env or {})}
            )
        except FileNotFoundError as error:
            raise ClusterError(f"{words[0]} is not installed. {hint}".strip()) from error
        started = time.monotonic()
        try:
            while True:
                try:
                    code = child.wait(SIGN_OF_LIFE)
                    break
                except subprocess.TimeoutExpired:
                    cache.say(f"      … {time.monotonic() - started:.0f} s")
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code != 0:
        tail = "\n".join("    " + line for line in log.read_text(errors="replace").splitlines()[-15:])
        raise ClusterError(f"{words[0]} failed with exit code {code}. {hint}\n{tail}\n  whole log: {log}")


def output(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, stdin: str | None = None) -> str:
    """Standard output of `command`. Raises ClusterError with its standard error when it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]} is not installed.") from error
    if done.returncode != 0:
        shown = " ".join(words if len(words) < 12 else [*words[:12], "…"])
        raise ClusterError(
            f"`{shown}` failed with exit code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def succeeds(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout: float = 30.0) -> bool:
    """Whether `command` exists and ends with 0 inside `timeout` seconds; `env` adds to the environment."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            check=False,
            timeout=timeout,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
