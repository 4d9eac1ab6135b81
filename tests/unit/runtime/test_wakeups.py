"""When a resource is looked at again after a failure. Time is a number that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from controllers.runtime.controller import Caches, PolicyRule
from controllers.runtime.errors import ReconcileError, RetryError, WaitError
from controllers.runtime.manager import Manager, ManagerOptions
from controllers.runtime.metrics import Metrics
from controllers.runtime.objects import Key, Manifest, ObjectType
from controllers.runtime.plan import Plan
from headrace.api import TrainingJob

KEY = Key("ml", "digits")


class Failing:
    """A controller whose every reconcile fails, each time with another message."""

    resource = TrainingJob
    owns: Sequence[ObjectType] = ()
    reads: Sequence[ObjectType] = ()
    rules: Sequence[PolicyRule] = ()

    def __init__(self, error: type[ReconcileError]) -> None:
        self.looks = 0
        self._error = error

    def gather(self, resource: TrainingJob, caches: Caches) -> None:
        """Nothing."""

    def plan(self, resource: TrainingJob, observed: None, now: datetime) -> Plan:
        """Fail as a connection does that comes from another port each time."""
        self.looks += 1
        raise self._error("Unreachable", f"10.0.0.1:{40000 + self.looks} -> 10.0.0.2:443: connection refused")


class Stage:
    """A manager with one resource, in front of an API server that keeps the resource's status."""

    def __init__(self, error: type[ReconcileError] = RetryError, *, watch_first: bool = False) -> None:
        self.now = 100.0
        self.version = 1
        self.watch_first = watch_first
        self.during_write: Callable[[], object] = lambda: None
        self.controller = Failing(error)
        self.manager = Manager(
            self,  # type: ignore[arg-type]
            [self.controller],
            Metrics(CollectorRegistry()),
            ManagerOptions(workers=1),
            clock=lambda: self.now,
        )
        self.store = self.manager.store(TrainingJob)
        self.queue = self.manager.queue(TrainingJob)
        self.object: Manifest = {
            "apiVersion": "headrace.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": KEY.name, "namespace": KEY.namespace, "uid": "u", "generation": 1},
            "spec": {"classifier": {"dataset": {"builtin": "Digits"}}},
        }

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> Manifest:
        """Answer as the API server."""
        if not path.endswith("/status"):
            return {}
        self.during_write()
        answer = self.changed(status=body["status"])
        if self.watch_first:
            self.store.put(answer)
        return answer

    def changed(self, *, metadata: Manifest | None = None, **fields: Any) -> Manifest:
        """The resource's next version."""
        self.version += 1
        merged = {**self.object["metadata"], **(metadata or {}), "resourceVersion": str(self.version)}
        self.object = {**self.object, **fields, "metadata": merged}
        return self.object

    @asynccontextmanager
    async def running(self, looks: int = 1) -> AsyncIterator[None]:
        """The manager runs and has looked at the resource so often."""
        run = asyncio.create_task(self.manager.run())
        await asyncio.wait_for(self.manager.ready.wait(), 5)
        try:
            self.store.put(self.changed())
            await self.until(1)
            for look in range(2, looks + 1):
                await self.pass_time(self.wait())
                await self.until(look)
            yield
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def until(self, looks: int) -> None:
        """Wait for this look at the resource to have ended."""
        async with asyncio.timeout(5):
            while self.controller.looks < looks or not self.queue.idle:  # noqa: ASYNC110 - a queue tells nobody
                await asyncio.sleep(0)
        assert self.controller.looks == looks

    def wait(self) -> float:
        """Seconds until the resource is looked at again."""
        due = self.queue.next_due()
        assert due is not None
        return due - self.now

    async def pass_time(self, seconds: float) -> None:
        """Move the clock and have the queue see it: a worker that sleeps is woken by another key."""
        self.now += seconds
        self.queue.add(Key("ml", "not there"))


@pytest.mark.parametrize("watch_first", [False, True], ids=["answer-first", "watch-first"])
async def test_a_failure_that_says_something_else_each_time_still_backs_off(watch_first: bool) -> None:
    stage = Stage(watch_first=watch_first)
    async with stage.running():
        # Equal jitter: between half of the full delay and the full delay, which doubles from 0.5.
        for look, full in enumerate((0.5, 1, 2, 4, 8, 16, 32), 1):
            await stage.until(look)
            assert stage.object["status"]["conditions"][0]["message"].startswith(f"10.0.0.1:{40000 + look} ")
            assert full / 2 <= stage.wait() <= full
            await stage.pass_time(stage.wait())
        await stage.until(8)


async def test_a_wait_that_says_something_else_each_time_takes_its_time() -> None:
    stage = Stage(WaitError)
    async with stage.running():
        assert stage.wait() == pytest.approx(30.0)


async def test_an_outside_change_of_a_resource_that_backs_off_is_looked_at_at_once() -> None:
    stage = Stage()
    async with stage.running(looks=4):
        stage.store.put(stage.changed(metadata={"generation": 2}))
        await stage.until(5)


@pytest.mark.parametrize("metadata", [{"generation": 2}, {"labels": {"team": "a"}}], ids=["spec", "labels"])
async def test_an_outside_change_during_a_failing_reconcile_is_looked_at_soon(metadata: Manifest) -> None:
    """Also where the answer to the status write is the first to show it."""
    stage = Stage()
    async with stage.running(looks=4):
        stage.during_write = lambda: stage.changed(metadata=metadata)
        await stage.pass_time(stage.wait())
        await stage.until(5)
        assert stage.wait() == pytest.approx(stage.manager.options.batch)
