"""Where the time of a step goes: waiting for data, waiting for other workers, and computing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

WINDOW = 20.0
"""Seconds over which times are averaged."""
RESOLUTION = 0.5
"""Seconds between two marks: bounds what is kept, however quick the steps are."""

T = TypeVar("T")


class Split(NamedTuple):
    """Seconds of one step, on average."""

    total: float
    data: float
    communication: float
    compute: float


class _Mark(NamedTuple):
    at: float
    steps: int
    data: float
    paused: float


class StepClock:
    """Counts steps and what they waited for.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._steps = 0
        self._data = 0.0
        self._paused = 0.0
        self._latest: int | None = None
        self._marks: deque[_Mark] = deque()
        self._next_mark = 0.0
        self._ddp: Any = None

    def begin(self) -> None:
        """Training begins now."""
        self._marks.clear()
        self._latest = None
        self._mark(self._clock())

    def watch(self, model: Any) -> None:
        """Take the time of communication from a DistributedDataParallel, which measures it on some of its steps."""
        if hasattr(model, "_get_ddp_logging_data"):
            self._ddp = model

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time that each takes to come counts as waiting for data."""
        iterator = iter(items)
        while True:
            asked = self._clock()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._data += self._clock() - asked
            yield item

    def step(self, number: int, paused: float) -> bool:
        """Step `number` is finished.

        Args:
            number: As the script counts; what it says twice counts once.
            paused: Seconds that saving took so far; they are no part of a step.

        Returns:
            Whether that is news.
        """
        latest, self._latest = self._latest, number
        if latest is not None and number <= latest:
            return False
        self._steps += 1 if latest is None else number - latest
        self._paused = paused
        now = self._clock()
        if now >= self._next_mark:
            self._mark(now)
        return True

    def split(self) -> Split | None:
        """The average step of the last seconds; None before there was one."""
        if not self._marks:
            return None
        first = self._marks[0]
        last = self._marks[-1]
        if last.steps == first.steps:
            last = _Mark(self._clock(), self._steps, self._data, self._paused)
        steps = last.steps - first.steps
        if not steps:
            return None
        total = max(0.0, last.at - first.at - (last.paused - first.paused)) / steps
        data = min(total, (last.data - first.data) / steps)
        communication = min(total - data, self._communication())
        return Split(total, data, communication, total - data - communication)

    def own_work(self) -> float | None:
        """Seconds of a step that this process works itself, waiting for nobody but its data; None where not known.

        Of the whole step all workers take the same time, since each waits for the slowest: this tells which that is.
        """
        split = self.split()
        if self._ddp is None or split is None:
            return None
        measured = self._ddp._get_ddp_logging_data()
        computed = measured.get("forward_compute_time", 0) + measured.get("backward_compute_time", 0)
        return split.data + computed / 1e9 if computed else None

    def _mark(self, now: float) -> None:
        self._marks.append(_Mark(now, self._steps, self._data, self._paused))
        self._next_mark = now + RESOLUTION
        while len(self._marks) > 2 and now - self._marks[1].at > WINDOW:
            self._marks.popleft()

    def _communication(self) -> float:
        """Seconds per step in which gradients were on their way and nothing was left to compute."""
        if self._ddp is None:
            return 0.0
        measured = self._ddp._get_ddp_logging_data()
        shared = measured.get("avg_backward_compute_comm_overlap_time", 0)
        exposed = float(measured.get("avg_backward_comm_time", 0)) - float(shared)
        return max(0.0, exposed / 1e9)
