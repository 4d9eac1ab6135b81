"""How far a training process is: a few numbers in a file that both it and its agent have mapped.

Writing a beat costs a microsecond and no system call, so every step may say so. Times are of the machine's monotonic
clock, which all processes of a container share. A reader may see a write half done (a step that is one behind): it only
ever compares.
"""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path
from typing import NamedTuple

VARIABLE = "HEADRACE_BEATS"
_FORMAT = struct.Struct("=qqqdddq")
FORGET = 0.98
"""What is left of the slowest step's weight after each further one: about a hundred steps are remembered."""


class Beat(NamedTuple):
    """What a process last said.

    Attributes:
        beats: Beats of this process so far; 0: none.
        step: Step that it finished last.
        steps: Steps that it finished since it began.
        at: Monotonic time of the last beat, seconds.
        slowest: Longest recent time between two beats, seconds.
        compute: Recent mean of the seconds of a step that are its own work, not waiting for others; 0: unknown.
        finishing: All steps are done; what comes now (evaluation, export) has no beat.
    """

    beats: int = 0
    step: int = 0
    steps: int = 0
    at: float = 0.0
    slowest: float = 0.0
    compute: float = 0.0
    finishing: bool = False


class BeatWriter:
    """The training process's side.

    Args:
        path: The file; it must exist.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FORMAT.size)
        self._last = Beat()

    def beat(self, step: int | None = None, *, finishing: bool = False) -> None:
        """The process is alive and has come to `step` (None: as far as before)."""
        now, last = time.monotonic(), self._last
        reached = last.step if step is None else step
        steps = last.steps + (last.beats > 0 and reached > last.step)
        slowest = max(now - last.at, last.slowest * FORGET) if last.steps else 0.0
        self._last = Beat(last.beats + 1, reached, steps, now, slowest, last.compute, finishing)
        self._write()

    def computed(self, seconds: float) -> None:
        """The own work of a step took so long."""
        before = self._last.compute
        # Told about twice a second: half of it is from the last 3 s.
        self._last = self._last._replace(compute=seconds if not before else 0.9 * before + 0.1 * seconds)
        self._write()

    def _write(self) -> None:
        _FORMAT.pack_into(self._memory, 0, *self._last)


class BeatReader:
    """The agent's side: makes the file and reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(_FORMAT.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FORMAT.size)

    def read(self) -> Beat:
        """What the process last said."""
        beats, step, steps, at, slowest, compute, finishing = _FORMAT.unpack_from(self._memory)
        return Beat(beats, step, steps, at, slowest, compute, bool(finishing))

    def close(self) -> None:
        """Give the memory back and remove the file."""
        self._memory.close()
        self.path.unlink(missing_ok=True)
