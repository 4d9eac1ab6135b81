"""The keyed queue between events and workers.

A controller is level-triggered: an event says only that something about a resource may have changed, never what. So
what is queued is the resource's key, and a key that is already waiting need not wait twice. The queue gives four
promises, which together are the reason that the code behind it can be simple:

1. *A key waits at most once.* A thousand events of one resource before a worker comes are one reconcile.
2. *A key is worked on by one worker at a time.* A key that is added while a worker has it is remembered and handed
   out again as soon as that worker says `done`: no event is lost, and no two workers ever write for the same
   resource.
3. *Failures back off by key.* `retry` adds the key after a delay that doubles with each failure in a row and is
   jittered; `forget` ends the row. Other keys are not held up.
4. *What is due later is kept here.* `add_after` is how a plan asks to be looked at again. The earliest of several
   times wins, and an `add` in between takes the key out of the waiting room, since looking now answers the later look
   too.

Time comes from an injected clock, and all decisions are made by plain methods (`add`, `pop`, `done`) that a test
calls with a clock of its own; only `get` waits. The queue belongs to one event loop and is not thread-safe.

Its metrics carry the names that client-go and controller-runtime gave them, so existing dashboards and alerts work:
depth, adds, time in queue, time at work, retries, and how long what is at work now has been there.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from controllers.runtime.backoff import Backoff

K = TypeVar("K", bound=Hashable)


class QueueClosed(Exception):
    """The queue hands out nothing more."""


class QueueMetrics(Protocol):
    """Where the queue reports; see `controllers.runtime.metrics`."""

    def added(self, depth: int) -> None:
        """A key came in; `depth` keys wait now."""
        ...

    def taken(self, depth: int, waited: float) -> None:
        """A worker took a key that waited this many seconds."""
        ...

    def finished(self, worked: float) -> None:
        """A worker is done with a key after this many seconds."""
        ...

    def retried(self) -> None:
        """A key is to be tried again after a failure."""
        ...


class NoMetrics:
    """Reports to nobody."""

    def added(self, depth: int) -> None:
        """Nothing."""

    def taken(self, depth: int, waited: float) -> None:
        """Nothing."""

    def finished(self, worked: float) -> None:
        """Nothing."""

    def retried(self) -> None:
        """Nothing."""


class KeyedQueue(Generic[K]):
    """A queue of distinct keys, each worked on by one worker at a time."""

    def __init__(
        self,
        *,
        backoff: Backoff | None = None,
        metrics: QueueMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backoff = backoff or Backoff(base=0.5, cap=300.0)
        self._metrics: QueueMetrics = metrics or NoMetrics()
        self._clock = clock
        self._ready: deque[K] = deque()
        self._added_at: dict[K, float] = {}  # keys in _ready
        self._working: dict[K, float] = {}  # key -> when a worker took it
        self._again: set[K] = set()  # added while a worker has them
        self._due: dict[K, float] = {}  # key -> when it becomes ready
        self._timers: list[tuple[float, int, K]] = []  # heap over _due; entries that _due no longer holds are stale
        self._sequence = 0
        self._failures: dict[K, int] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        """Keys ready to be taken."""
        return len(self._ready)

    @property
    def working(self) -> dict[K, float]:
        """Keys that workers have now, and since when by the queue's clock."""
        return self._working

    @property
    def idle(self) -> bool:
        """Whether nothing is ready and nobody works; delayed keys do not count."""
        return not self._ready and not self._working

    def failures(self, key: K) -> int:
        """Failures of the key in a row."""
        return self._failures.get(key, 0)

    def add(self, key: K) -> None:
        """Have the key worked on as soon as possible."""
        if self._closed:
            return
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
            return
        if key in self._added_at:
            return
        self._added_at[key] = self._clock()
        self._ready.append(key)
        self._metrics.added(len(self._ready))
        self._wake()

    def add_after(self, key: K, delay: float) -> None:
        """Have the key worked on after `delay` seconds, unless it is anyway before."""
        if delay <= 0:
            self.add(key)
            return
        if self._closed or key in self._added_at or key in self._again:
            return
        due = self._clock() + delay
        if self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._timers, (due, self._sequence, key))
        if self.next_due() == due:
            self._wake()  # the sleeping getter's deadline is too late now

    def retry(self, key: K) -> float:
        """Have the key worked on again after a failure; returns the delay in seconds."""
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        delay = self._backoff.delay(failures)
        self._metrics.retried()
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """End the key's row of failures."""
        self._failures.pop(key, None)

    def pop(self) -> K | None:
        """The next key, which the caller must give back by `done`; None when none is ready."""
        self._promote()
        if not self._ready:
            return None
        key = self._ready.popleft()
        now = self._clock()
        self._working[key] = now
        self._metrics.taken(len(self._ready), now - self._added_at.pop(key))
        return key

    def done(self, key: K) -> None:
        """Give a key back; it becomes ready at once when it was added meanwhile."""
        started = self._working.pop(key)
        self._metrics.finished(self._clock() - started)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def get(self) -> K:
        """The next key, when there is one.

        Raises:
            QueueClosed: `close` was called.
        """
        while True:
            if self._closed:
                raise QueueClosed
            key = self.pop()
            if key is not None:
                if self._ready or self._timers:
                    self._wake()  # another one looks after what is left, while this one works
                return key
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                async with asyncio.timeout(self._until_due()):
                    await getter
            except TimeoutError:
                continue
            finally:
                if getter in self._getters:
                    self._getters.remove(getter)

    def close(self) -> None:
        """Hand out nothing more; workers finish what they have."""
        self._closed = True
        while self._getters:
            self._wake()

    def next_due(self) -> float | None:
        """When the earliest delayed key becomes ready, by the queue's clock."""
        while self._timers and self._due.get(self._timers[0][2]) != self._timers[0][0]:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _until_due(self) -> float | None:
        due = self.next_due()
        return None if due is None else max(due - self._clock(), 0.0)

    def _promote(self) -> None:
        now = self._clock()
        while (due := self.next_due()) is not None and due <= now:
            key = heapq.heappop(self._timers)[2]
            self.add(key)

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return
