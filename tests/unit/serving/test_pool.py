"""Where runs are done: brief ones on the event loop, others in threads, and those that were thought brief in both."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from headrace.serving.models.base import Stop
from headrace.serving.models.onnx_model import OnnxModel
from headrace.serving.pool import LEARNED, PATIENCE, SMALL, ModelPool
from tests.unit.serving import models
from tests.unit.serving.waiting import until


@asynccontextmanager
async def pool() -> AsyncIterator[ModelPool]:
    found = ModelPool(threads=1, waiting=4)
    try:
        yield found
    finally:
        found.close()


def where(stop: Stop) -> threading.Thread:
    return threading.current_thread()


async def learned(found: ModelPool) -> None:
    """Runs until small ones are done on the event loop: on a busy machine it may need more to see how brief."""

    async def here() -> bool:
        return await found.run(where, 10) is threading.current_thread()

    for _ in range(LEARNED):
        assert not await here()
    await until(here, "small runs are done on the event loop")


async def test_brief_runs_need_no_thread_once_they_are_known() -> None:
    async with pool() as found:
        await learned(found)
        assert await found.run(where, SMALL + 1) is not threading.current_thread()
        assert await found.run(where) is not threading.current_thread()


async def test_runs_that_are_not_brief_stay_in_threads() -> None:
    def work(stop: Stop) -> threading.Thread:
        until = time.thread_time() + 0.001
        while time.thread_time() < until:
            pass
        return threading.current_thread()

    async with pool() as found:
        for _ in range(LEARNED + 5):
            assert await found.run(work, 10) is not threading.current_thread()


async def test_a_run_that_was_thought_brief_does_not_hold_the_event_loop(tmp_path: Path) -> None:
    model = OnnxModel(models.slow(tmp_path / "m.onnx"), 1)
    x = np.zeros((1, 1), np.float32)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(PATIENCE / 10)
            ticks += 1

    async with pool() as found:
        await learned(found)
        begun = time.perf_counter()
        model.run({"x": x, "count": np.array([5_000])}, ["y"])
        count = int(5_000 * 10 * PATIENCE / (time.perf_counter() - begun))
        ticking = asyncio.ensure_future(tick())
        inputs = {"x": x, "count": np.array([count])}
        (y,) = await found.run(lambda stop: model.run(inputs, ["y"], stop), 10)
        ticking.cancel()
        assert y[0, 0] == min(count, 2**24)
        # It takes some ten times the patience, and the loop went on for most of it.
        assert ticks >= 10
        assert await found.run(where, 10) is not threading.current_thread()
