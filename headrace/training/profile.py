"""A profile on demand: `python -m headrace.training.profile` in a worker's container, or `headrace training profile`.

A session leaves a file with its process's number behind; the command writes a request beside it and sends SIGUSR2.
The session profiles its next steps with torch.profiler, uploads the trace to `profiles/` of the run's storage, and
leaves the address for the command to print. A trace is opened at https://ui.perfetto.dev or chrome://tracing.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.storage import StorageError, Store

logger = logging.getLogger(__name__)

REQUEST = signal.SIGUSR2
STEPS = 5
MAX_STEPS = 1000
_FOLDER = "headrace-sessions"


def folder() -> Path:
    """Where the sessions of this machine are listed."""
    return Path(tempfile.gettempdir()) / _FOLDER


class Profiler:
    """A session's side.

    Args:
        rank: This process.
        attempt: Number of the attempt.
        storage: Folder of the run; without it nobody can be served.
        sessions: Where this session is listed.
    """

    def __init__(self, rank: int, attempt: int, storage: Store | None, sessions: Path | None = None) -> None:
        self._rank, self._attempt, self._storage = rank, attempt, storage
        self._listed = (sessions or folder()) / str(os.getpid())
        self._requested = False
        self._active: Any = None
        self._left = 0
        self._begun = 0

    def __enter__(self) -> Profiler:
        if self._storage is not None and threading.current_thread() is threading.main_thread():
            try:
                self._listed.parent.mkdir(parents=True, exist_ok=True)
                self._listed.write_text(str(self._rank))
                self._previous = signal.signal(REQUEST, self._on_request)
            except OSError as error:
                logger.warning("profiles on demand are not to be had: %s", error)
                self._storage = None
        else:
            self._storage = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._storage is not None:
            signal.signal(REQUEST, self._previous)
            with contextlib.suppress(FileNotFoundError):
                self._listed.unlink()

    def step(self, number: int) -> None:
        """Step `number` is finished: begin, go on or end."""
        if self._active is not None:
            self._left -= 1
            if self._left <= 0:
                self._end(number)
        elif self._requested:
            self._requested = False
            self._begin(number)

    def _on_request(self, number: int, frame: object) -> None:
        self._requested = True

    def _begin(self, number: int) -> None:
        import torch

        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        try:
            steps = int(self._beside("request").read_text())
        except (OSError, ValueError):
            steps = STEPS
        self._left, self._begun = max(1, min(steps, MAX_STEPS)), number
        self._active = torch.profiler.profile(activities=activities)
        self._active.__enter__()
        logger.info("profiling %d steps after step %d", self._left, number)

    def _end(self, number: int) -> None:
        profile, self._active = self._active, None
        profile.__exit__(None, None, None)
        with tempfile.TemporaryDirectory() as scratch:
            trace = Path(scratch) / "trace.json"
            profile.export_chrome_trace(str(trace))
            content = gzip.compress(trace.read_bytes(), 3)
        name = f"profiles/attempt-{self._attempt}-rank-{self._rank}-steps-{self._begun + 1}-{number}.json.gz"
        threading.Thread(target=self._upload, args=(name, content), name="headrace-profile", daemon=True).start()

    def _upload(self, name: str, content: bytes) -> None:
        assert self._storage is not None
        try:
            self._storage.write_bytes(name, content)
        except StorageError as error:
            logger.warning("the profile is not saved: %s", error)
            self._answer(error=str(error))
            return
        logger.info("the profile is at %s", self._storage.uri_of(name))
        self._answer(uri=self._storage.uri_of(name), rank=self._rank)

    def _answer(self, **content: object) -> None:
        part = self._beside("part")
        part.write_text(json.dumps(content))
        part.replace(self._beside("answer"))

    def _beside(self, kind: str) -> Path:
        return self._listed.with_suffix(f".{kind}")


def main(arguments: Sequence[str], sessions: Path | None = None) -> int:
    """Ask the sessions of this machine for a profile and print where it is.

    Returns:
        0 when all asked have answered.
    """
    parser = argparse.ArgumentParser(prog="python -m headrace.training.profile", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps to profile")
    parser.add_argument("--rank", type=int, help="only this process; by default all of this pod")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds to wait for it")
    parsed = parser.parse_args(arguments)
    asked: list[Path] = []
    for listed in sorted((sessions or folder()).glob("[0-9]*")):
        if listed.suffix or (parsed.rank is not None and listed.read_text() != str(parsed.rank)):
            continue
        listed.with_suffix(".answer").unlink(missing_ok=True)
        listed.with_suffix(".request").write_text(str(parsed.steps))
        try:
            os.kill(int(listed.name), REQUEST)
        except ProcessLookupError:
            listed.unlink()
            continue
        asked.append(listed)
    if not asked:
        return _say("no session of this run is here: the script must use headrace.training.session, with storage", 1)
    deadline = time.monotonic() + parsed.timeout
    failed = False
    for listed in asked:
        answer = listed.with_suffix(".answer")
        while not answer.exists():
            if time.monotonic() > deadline:
                return _say(f"process {listed.name} has not finished {parsed.steps} steps in {parsed.timeout:g} s", 1)
            time.sleep(0.1)
        content = json.loads(answer.read_text())
        failed = failed or "error" in content
        _say(content.get("uri") or f"error: {content['error']}", 0)
    return int(failed)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr if code else sys.stdout, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
