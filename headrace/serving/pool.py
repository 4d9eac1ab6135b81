"""Runs of a model in threads: so many at once, so many waiting, and none for a caller who has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from headrace.serving.models.base import Stop

T = TypeVar("T")


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
        self.in_flight = 0

    async def run(self, work: Callable[[Stop], T]) -> T:
        """The result of `work`. When the caller is cancelled, waiting work is dropped and running work is stopped.

        Raises:
            Overloaded: there is no room.
        """
        if self.in_flight >= self._room:
            raise Overloaded
        stop = Stop()
        loop = asyncio.get_running_loop()
        self.in_flight += 1
        try:
            future = self._executor.submit(work, stop)
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
