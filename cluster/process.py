"""Running other programs: output in a log file, a sign of life on long ones, errors that show the end of the log.

Steps of which one waits for the network while another computes run `side_by_side`.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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

    `env` adds to the environment; the log's name is what a sign of life says. Raises ClusterError with the last lines
    of the log and `hint` when the command fails.
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
                    cache.say(f"      … {log.stem} {time.monotonic() - started:.0f} s")
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


@contextmanager
def side_by_side(steps: Sequence[Callable[[], object]], lanes: int | None = None) -> Iterator[None]:
    """Run `steps` in threads while the context lasts, at most `lanes` at a time, the first ones first.

    Leaving the context waits for them and raises what the first failing one raised. After a failure, in a step or in
    the context, no further step begins; those that run come to their end, since what they build is kept.
    """
    failed = threading.Event()

    def run(step: Callable[[], object]) -> None:
        if failed.is_set():
            return
        try:
            step()
        except BaseException:
            failed.set()
            raise

    executor = ThreadPoolExecutor(max(1, lanes or len(steps)))
    running = [executor.submit(run, step) for step in steps]
    try:
        yield
    except BaseException:
        failed.set()
        if not all(future.done() for future in running):
            cache.say("waiting for what still runs beside it…")
        raise
    finally:
        executor.shutdown()
    for future in running:
        future.result()
