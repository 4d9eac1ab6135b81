"""When to save: by time, and on all workers at the same step.

Worker 0's clock decides, and the others learn of it in a small all-reduce. That would cost a fast step too much, so it
is done only every so many calls: often enough that a checkpoint is at most a twentieth of its interval (and a second)
late. The same exchange tells all that one of them was told to stop, so that they save together before it leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

INTERRUPTED_INTERVAL = 5.0
"""Seconds of work that are worth a checkpoint when a worker is told to stop."""
LATEST = 1.0
"""Most seconds between two exchanges."""
SHARE = 20
"""An exchange happens so many times per interval."""
MAX_STRIDE = 100_000


class Schedule:
    """Says when a checkpoint is due; every worker must ask equally often.

    Args:
        rank: This worker.
        interval: Seconds between two checkpoints.
        interrupted: Whether this worker was told to stop.
        greatest: The greatest of each number over all workers, a collective; None in a run of one.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        rank: int,
        interval: float,
        interrupted: Callable[[], bool],
        greatest: Callable[[Sequence[int]], list[int]] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank = rank
        self._interval = interval
        self._interrupted = interrupted
        self._greatest = greatest
        self._clock = clock
        self._last = clock()
        self._calls = 0
        self._asked = False
        self._stride = 1
        self._exchanged = clock()
        self._settled = False

    def begin(self) -> None:
        """Training begins, or a checkpoint was just made: the interval starts anew."""
        self._last = self._clock()

    def due(self, writing: bool) -> bool:
        """Whether all workers should save now.

        Args:
            writing: The last checkpoint is still being written.
        """
        self._asked = True
        if self._greatest is None:
            stop = self._interrupted()
            self._settled = stop
            return self._is_time(stop, writing)
        self._calls += 1
        if self._calls < self._stride:
            return False
        return self._exchange(writing)

    def may_leave(self) -> bool:
        """Whether a worker that was told to stop need not wait for the next exchange."""
        return not self._asked or self._settled

    def _exchange(self, writing: bool) -> bool:
        assert self._greatest is not None
        mine = self._interrupted()
        first = self._rank == 0
        wanted = self._next_stride() if first else 0
        # Worker 0 answers both questions, since it does not know yet whether somebody was told to stop.
        answers = [self._is_time(stop, writing) if first else False for stop in (False, True)]
        stop, due, due_if_stopped, self._stride = self._greatest([mine, *answers, wanted])
        self._calls = 0
        self._settled = self._settled or mine
        return bool(due_if_stopped if stop else due)

    def _is_time(self, stop: bool, writing: bool) -> bool:
        interval = min(self._interval, INTERRUPTED_INTERVAL) if stop else self._interval
        return not writing and self._clock() - self._last >= interval

    def _next_stride(self) -> int:
        """Calls until the next exchange; at most twice as many as before, since steps may become slower."""
        now = self._clock()
        per_call = max((now - self._exchanged) / max(self._calls, 1), 1e-9)
        self._exchanged = now
        period = min(LATEST, self._interval / SHARE)
        return max(1, min(int(period / per_call), 2 * self._stride, MAX_STRIDE))
