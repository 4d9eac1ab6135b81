"""One training process: its start, its last words, its progress and its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from headrace.training.agent import beats
from headrace.training.agent.causes import Failure
from headrace.training.agent.link import DUMP, REPORTS
from headrace.training.agent.watch import Clock, bound
from headrace.training.errors import EXIT_CONFIGURATION

logger = logging.getLogger("headrace.training.agent")

DUMP_TIME = 1.0
SHORT_GRACE = 1.0
"""Seconds from SIGTERM to SIGKILL where there is nothing left to save."""
MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
_LINES = 40
_LAST_WORDS = 1000
_LINE = 1 << 16
_NEVER_RUNS = ("ModuleNotFoundError:", "ImportError:", "SyntaxError:", "IndentationError:")


class Child:
    """A training process that was started.

    Args:
        process: The process.
        index: Number of its worker.
        rank: Its rank.
        reader: Its beats.
    """

    def __init__(self, process: asyncio.subprocess.Process, index: int, rank: int, reader: beats.BeatReader) -> None:
        self.process = process
        self.rank = rank
        self._index = index
        self._reader = reader
        self._last: deque[str] = deque(maxlen=_LINES)
        self._killed_before = oom_kills()
        self._errors = asyncio.create_task(self._forward_errors())

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], index: int, rank: int, reports: int | None
    ) -> Child:
        """Start `command` as the process of a rank.

        Raises:
            OSError: it cannot be started.
        """
        descriptor, name = tempfile.mkstemp(prefix="headrace-beats-")
        os.close(descriptor)
        reader = beats.BeatReader(Path(name))
        told = {**environment, beats.VARIABLE: name}
        if reports is not None:
            told[REPORTS] = str(reports)
        process = await asyncio.create_subprocess_exec(
            *command,
            env=told,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # so that what it started can be ended with it
            pass_fds=() if reports is None else (reports,),
        )
        return cls(process, index, rank, reader)

    async def wait(self) -> Failure | None:
        """The end of the process: None where it went well."""
        code = await self.process.wait()
        self._signal(signal.SIGKILL)  # what it left behind
        await asyncio.wait({self._errors}, timeout=1.0)
        if code == 0:
            return None
        message = self.last_words()
        if code == 1 and self._reader.read().beats == 0 and message.startswith(_NEVER_RUNS):
            code, message = EXIT_CONFIGURATION, f"the script cannot be run ({message}); correct script or image"
        return Failure(
            index=self._index,
            rank=self.rank,
            code=code if code > 0 else 128 - code,
            message=message,
            out_of_memory=code == -signal.SIGKILL and oom_kills() > self._killed_before,
            at=time.monotonic(),
        )

    async def stop(self, grace: float, *, dump: bool = False) -> None:
        """End the process, if it runs.

        Args:
            grace: Seconds from SIGTERM to SIGKILL.
            dump: Have it write its stacks first.
        """
        if self.process.returncode is None and dump:
            self._signal(DUMP, group=False)
            self._signal(signal.SIGCONT)  # a stopped process takes no other signal
            with suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), DUMP_TIME)
        if self.process.returncode is None:
            self._signal(signal.SIGTERM, group=False)
            self._signal(signal.SIGCONT)
            try:
                await asyncio.wait_for(self.process.wait(), max(grace, SHORT_GRACE))
            except TimeoutError:
                self._signal(signal.SIGKILL)
                await self.process.wait()
        self._signal(signal.SIGKILL)

    def beat(self, clock: Clock, hang_timeout: float, hangs: int) -> dict[str, Any]:
        """How far it is, for a message."""
        last, now = self._reader.read(), time.monotonic()
        age = clock.since(last.at, now) if last.beats else 0.0
        return {
            "rank": self.rank,
            "step": last.step,
            "steps": last.steps,
            "age": round(age, 2),
            "overdue": self.process.returncode is None and age > bound(last, hang_timeout, hangs),
            "compute": round(last.compute, 6),
            "stopped": _is_stopped(self.process.pid),
        }

    def last_words(self) -> str:
        """The last line of its standard error that says something."""
        lines = [line.strip() for line in self._last if line.strip()]
        return lines[-1].removeprefix("error: ")[:_LAST_WORDS] if lines else ""

    def close(self) -> None:
        """Forget it."""
        self._errors.cancel()
        self._reader.close()

    def _signal(self, number: signal.Signals, *, group: bool = True) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(self.process.pid, number)
            else:
                os.kill(self.process.pid, number)

    async def _forward_errors(self) -> None:
        """Standard error goes where the agent's goes, and its end is kept for the pod's termination message."""
        stream = self.process.stderr
        if stream is None:
            return
        rest = b""
        while data := await stream.read(_LINE):
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()
            *lines, rest = (rest + data).split(b"\n")
            self._last.extend(line.decode(errors="replace") for line in lines)
            rest = rest[-_LINE:]
        if rest:
            self._last.append(rest.decode(errors="replace"))


def oom_kills(events: Path = MEMORY_EVENTS) -> int:
    """Processes of this container that the kernel killed for want of memory so far."""
    try:
        lines = events.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _is_stopped(pid: int) -> bool:
    """Whether the process was stopped by SIGSTOP or a debugger."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
