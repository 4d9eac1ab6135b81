"""Runs of a model: so many at once, so many waiting, and none for a caller who has left.

Runs have threads, so that the event loop goes on meanwhile. Handing a run to a thread and its result back costs about
as much as a small model's whole run, so runs that are known to be short (`BRIEF`, as measured) are done on the event
loop itself. What a run takes is a guess, since a graph may loop as often as its input says. One that takes longer than
`PATIENCE` on the event loop is stopped by a watcher, begun again in a thread, and no other is tried there for a while.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from headrace.serving.models.base import Stop, Stopped

T = TypeVar("T")
BRIEF = 250e-6
"""Seconds of CPU, of its own thread, of a run that is worth no other thread; a busy machine makes no run longer so."""
SMALL = 16 * 1024
"""Bytes of the largest request whose run may be brief; larger ones have another time than those that were measured."""
LEARNED = 20
"""Runs in threads before any is tried on the event loop."""
SMOOTHING = 0.1
"""Weight of one run in the smoothed time."""
PATIENCE = 0.05
"""Seconds of CPU that a run may take on the event loop."""
LOST_PATIENCE = 1.0
"""Seconds by the clock that it may take, on however busy a machine."""
PENALTY = 60.0
"""Seconds without runs on the event loop after one that was stopped."""
WATCHER_REST = 5.0
"""Seconds without such runs after which their watcher ends."""


class Overloaded(Exception):
    """No room: as many runs as allowed are in progress and waiting."""


class ModelPool:
    """Threads for one model. ONNX Runtime gives up the GIL while it computes.

    Args:
        threads: Runs at once.
        waiting: Runs that may wait for a thread; beyond them `Overloaded` is raised at once.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="model")
        self._room = threads + waiting
        self._brief = _Brief()
        self.in_flight = 0

    async def run(self, work: Callable[[Stop], T], size: int | None = None) -> T:
        """The result of `work`. When the caller is cancelled, waiting work is dropped and running work is stopped.

        Args:
            work: The run; it must end soon after its argument is stopped, and may be begun again then.
            size: Bytes of the request, where the run may be done on the event loop.

        Raises:
            Overloaded: there is no room.
        """
        small = size is not None and size <= SMALL
        # While others are in threads, the event loop is better kept for what they will need of it.
        if small and self.in_flight == 0 and self._brief.known:
            try:
                return self._brief.run(work)
            except Stopped:
                # It is no brief one. A thread begins it again.
                small = False
        if self.in_flight >= self._room:
            raise Overloaded
        stop = Stop()
        loop = asyncio.get_running_loop()
        self.in_flight += 1
        try:
            future = self._executor.submit(self._brief.timed(work) if small else work, stop)
        except RuntimeError:
            self.in_flight -= 1
            raise
        # The room is given back when the thread is free, not when the caller loses patience.
        future.add_done_callback(lambda _: self._done(loop))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            stop.stop()
            raise

    def _done(self, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        self.in_flight -= 1

    def close(self) -> None:
        """Drop what waits and let the threads end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class _Brief:
    """What small runs take, and those done on the event loop under the watcher's eyes."""

    def __init__(self) -> None:
        self._runs = 0
        self._seconds = 0.0
        self._barred_until = 0.0
        self._lock = threading.Lock()
        self._current: tuple[float, float, Stop] | None = None
        self._last = 0.0
        self._watching = False

    @property
    def known(self) -> bool:
        """Whether small runs are known to be brief."""
        return self._runs >= LEARNED and self._seconds < BRIEF and time.monotonic() >= self._barred_until

    def timed(self, work: Callable[[Stop], T]) -> Callable[[Stop], T]:
        """The work with its time taken."""

        def run(stop: Stop) -> T:
            begun = time.thread_time()
            result = work(stop)
            self._learn(time.thread_time() - begun)
            return result

        return run

    def _learn(self, seconds: float) -> None:
        # Threads race here; a lost figure among many is no loss.
        weight = SMOOTHING if self._runs else 1.0
        self._seconds += weight * (seconds - self._seconds)
        self._runs += 1

    def run(self, work: Callable[[Stop], T]) -> T:
        """The result of work that is done here and now.

        Raises:
            Stopped: it took too long.
        """
        stop = Stop()
        begun = time.thread_time()
        with self._lock:
            self._last = time.monotonic()
            self._current = begun, self._last, stop
            watched, self._watching = self._watching, True
        if not watched:
            clock = time.pthread_getcpuclockid(threading.get_ident())
            threading.Thread(target=self._watch, args=(clock,), name="model-watcher", daemon=True).start()
        try:
            result = work(stop)
        except Stopped:
            self._barred_until = time.monotonic() + PENALTY
            raise
        finally:
            self._current = None
        self._learn(time.thread_time() - begun)
        return result

    def _watch(self, clock: int) -> None:
        """Stop runs that take too long; `clock` is the event loop's thread's."""
        while True:
            time.sleep(PATIENCE / 2)
            with self._lock:
                now = time.monotonic()
                current = self._current
                if current is None and now - self._last > WATCHER_REST:
                    self._watching = False
                    return
            if current is None:
                continue
            cpu, begun, stop = current
            if time.clock_gettime(clock) - cpu > PATIENCE or now - begun > LOST_PATIENCE:
                stop.stop()
