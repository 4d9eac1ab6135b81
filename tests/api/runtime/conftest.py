"""An API server with an audit log that serves the toy kind, and managers of that kind in this process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cluster.controlplane import ControlPlane
from controllers.runtime.client import ApiClient
from controllers.runtime.manager import Manager, ManagerOptions
from controllers.runtime.metrics import Metrics
from controllers.runtime.objects import Manifest
from tests.api.rest import MERGE, Rest
from tests.api.runtime.proxy import Proxy, proxy
from tests.api.runtime.toy import CRD, Widget, WidgetController, widget


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The API server, for all tests of this folder."""
    plane = ControlPlane(tmp_path_factory.mktemp("runtime"), audit=True)
    plane.start()
    try:
        rest = Rest(plane.kubeconfig)
        rest("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", CRD)
        wait_until(lambda: _serves_widgets(rest), "the toy kind is served")
        yield plane
    finally:
        plane.stop()


def _serves_widgets(rest: Rest) -> bool:
    try:
        return rest("GET", "/apis/test.headrace.dev/v1/widgets").accepted
    except ValueError:  # a group that is not served yet is answered in plain text
        return False


_numbers = itertools.count(1)


@dataclass(frozen=True)
class Space:
    """One namespace, by direct requests."""

    rest: Rest
    name: str

    def path(self, plural: str, name: str = "") -> str:
        """Path of a type's objects, or of one, in the namespace."""
        root = "/apis/test.headrace.dev/v1" if plural == "widgets" else "/api/v1"
        return f"{root}/namespaces/{self.name}/{plural}" + (f"/{name}" if name else "")

    def create(self, name: str, **spec: Any) -> Manifest:
        """Create a Widget."""
        answer = self.rest("POST", self.path("widgets"), widget(name, self.name, **spec))
        assert answer.accepted, answer
        return answer.body

    def set(self, plural: str, name: str, **fields: Any) -> None:
        """Merge-patch an object."""
        answer = self.rest("PATCH", self.path(plural, name), fields, content_type=MERGE)
        assert answer.accepted, answer

    def get(self, plural: str, name: str) -> Manifest | None:
        """An object, or None."""
        answer = self.rest("GET", self.path(plural, name))
        return answer.body if answer.accepted else None

    def all(self, plural: str) -> list[Manifest]:
        """All objects of a type."""
        items: list[Manifest] = self.rest("GET", self.path(plural)).body["items"]
        return items

    def delete(self, plural: str, name: str) -> None:
        """Delete an object at once."""
        answer = self.rest("DELETE", self.path(plural, name), {"gracePeriodSeconds": 0})
        assert answer.accepted, answer

    def ready(self, name: str) -> Manifest:
        """The Ready condition of a Widget, empty when it has none."""
        found = self.get("widgets", name) or {}
        conditions: list[Manifest] = found.get("status", {}).get("conditions", [])
        return next((item for item in conditions if item["type"] == "Ready"), {})

    def is_ready(self, name: str) -> bool:
        """Whether the Widget is Ready for its present spec."""
        found = self.get("widgets", name)
        ready = self.ready(name)
        return (
            found is not None
            and ready.get("status") == "True"
            and ready["observedGeneration"] == found["metadata"]["generation"]
        )

    def events(self) -> list[Manifest]:
        """Events of the namespace."""
        answer = self.rest("GET", f"/apis/events.k8s.io/v1/namespaces/{self.name}/events")
        items: list[Manifest] = answer.body["items"]
        return items

    def pods(self) -> list[str]:
        """Names of the pods that are not on their way out."""
        return sorted(
            item["metadata"]["name"] for item in self.all("pods") if not item["metadata"].get("deletionTimestamp")
        )


@pytest.fixture
def space(plane: ControlPlane) -> Space:
    """A namespace of the test's own."""
    return new_space(plane)


def new_space(plane: ControlPlane) -> Space:
    """A new namespace."""
    rest = Rest(plane.kubeconfig)
    name = f"space-{next(_numbers)}"
    assert rest("POST", "/api/v1/namespaces", {"metadata": {"name": name}}).accepted
    return Space(rest, name)


@dataclass(frozen=True)
class Running:
    """A manager at work behind a proxy."""

    manager: Manager
    proxy: Proxy
    client: ApiClient

    def idle(self) -> bool:
        """Whether nothing is to be done now; what is due later does not count."""
        return self.manager.queue(Widget).idle

    async def settle(self, seconds: float = 20.0) -> None:
        """Wait until no call was made and no key was worked on for half a second."""
        deadline = time.monotonic() + seconds
        calls, since = -1, time.monotonic()
        while time.monotonic() - since < 0.5:
            if len(self.proxy.writes()) != calls or not self.idle():
                calls, since = len(self.proxy.writes()), time.monotonic()
            assert time.monotonic() < deadline, "still busy"
            await asyncio.sleep(0.05)

    async def look_again(self) -> None:
        """Reconcile every Widget once more."""
        for key in self.manager.store(Widget):
            self.manager.queue(Widget).add(key)
        await self.settle()


@asynccontextmanager
async def running(
    plane: ControlPlane, space: Space, *, patience: float = 10.0, prepare: Callable[[Proxy], None] | None = None
) -> AsyncIterator[Running]:
    """A manager of the toy kind that sees one namespace through a proxy; its Widgets come from a watch cache."""
    async with AsyncExitStack() as stack:
        between = await stack.enter_async_context(proxy(plane.kubeconfig, space.name))
        if prepare is not None:
            prepare(between)
        client = ApiClient(between.connection, timeout=patience)
        stack.push_async_callback(client.close)
        manager = Manager(
            client, [WidgetController()], Metrics(CollectorRegistry()), ManagerOptions(drain=2.0, batch=0.05)
        )
        tasks = [asyncio.create_task(manager.run()), *(asyncio.create_task(cache.run()) for cache in manager.watch())]
        try:
            yield Running(manager, between, client)
        finally:
            await manager.stop()
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result


async def eventually(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition that makes blocking requests."""
    await asyncio.to_thread(wait_until, condition, what, seconds)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
