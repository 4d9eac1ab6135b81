"""What a process still does when it is told to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from prometheus_client import CollectorRegistry

from controllers.runtime.manager import Manager
from controllers.runtime.metrics import Metrics
from tests.api.runtime.toy import Widget, WidgetController, widget


class Api:
    """An empty cluster in which Events are accepted only once `accept` is set."""

    def __init__(self) -> None:
        self.accept = asyncio.Event()
        self.asked = 0
        self.events: list[str] = []

    async def get(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}, "items": []}

    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        await asyncio.Event().wait()
        yield {}

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> dict[str, Any]:
        if "/events" in path:
            self.asked += 1
            await self.accept.wait()
            self.events.append(body["reason"])
            return {}
        assert path.endswith("/status"), f"{method} {path}"
        return stored() | {"status": body["status"]}


def stored() -> dict[str, Any]:
    manifest = widget("w", pods=-1)
    manifest["metadata"] |= {"uid": "u", "generation": 1, "resourceVersion": "2"}
    return manifest


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def test_events_that_wait_are_written_before_the_process_ends() -> None:
    api = Api()
    manager = Manager(api, [WidgetController()], Metrics(CollectorRegistry()))  # type: ignore[arg-type]
    running = asyncio.create_task(manager.run())
    await asyncio.wait_for(manager.ready.wait(), 10)
    manager.store(Widget).put(stored())
    await until(lambda: api.asked == 1)
    stopping = asyncio.create_task(manager.stop())
    await until(lambda: not any(task.get_name() == "worker of widget" for task in asyncio.all_tasks()))
    for _ in range(10):  # whoever waits for the workers acts now
        await asyncio.sleep(0)
    assert not stopping.done()
    api.accept.set()
    await asyncio.wait_for(stopping, 10)
    await asyncio.wait_for(running, 10)
    assert api.events == ["InvalidSpec"]
