"""What resources say for completeness is limited over all of them, and is said in the end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from controllers.runtime.allowance import Allowance
from controllers.runtime.apply import Applier
from controllers.runtime.cache import CacheSet
from controllers.runtime.controller import PolicyRule
from controllers.runtime.events import EventRecorder
from controllers.runtime.objects import Key, Manifest, ObjectType
from controllers.runtime.plan import Plan
from controllers.runtime.reconciler import Reconciler
from controllers.runtime.store import ObjectStore
from headrace.api import TrainingJob

JOBS = ObjectType("headrace.dev/v1alpha1", "TrainingJob", "trainingjobs", managed_only=False)
PATIENCE = timedelta(seconds=5)


class Api:
    """Stores statuses."""

    def __init__(self) -> None:
        self.version = 10

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> Manifest:
        self.version += 1
        return {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}, "spec": spec()}


class Starting:
    """Every job says that it starts; those called `broken` have a verdict."""

    resource = TrainingJob
    owns: Sequence[ObjectType] = ()
    reads: Sequence[ObjectType] = ()
    rules: Sequence[PolicyRule] = ()

    def gather(self, resource: TrainingJob, caches: Any) -> None: ...

    def plan(self, resource: TrainingJob, observed: None, now: datetime) -> Plan:
        broken = resource.metadata.name.startswith("broken")
        return Plan(status={"attempt": 1}, status_can_wait=None if broken else PATIENCE)


def spec() -> dict[str, Any]:
    return {"classifier": {"dataset": {"builtin": "Digits"}}}


class Fixture:
    """Jobs, a reconciler whose allowance is two at once and one per second, and a clock that stands still."""

    def __init__(self, *names: str) -> None:
        self.now = 0.0
        api: Any = Api()
        caches = CacheSet()
        self.store = ObjectStore(JOBS)
        for version, name in enumerate(names, 1):
            metadata = {"name": name, "namespace": "ml", "uid": name, "generation": 1, "resourceVersion": str(version)}
            self.store.record({"apiVersion": JOBS.api_version, "kind": JOBS.kind, "metadata": metadata, "spec": spec()})
        self.reconciler: Reconciler[TrainingJob, None] = Reconciler(
            Starting(),
            self.store,
            caches,
            Applier(api, caches),
            EventRecorder(api),
            allowance=Allowance(1.0, 2, lambda: self.now),
        )

    async def reconcile(self, name: str) -> timedelta | None:
        """When it is to be looked at again."""
        return (await self.reconciler.reconcile(Key("ml", name))).after

    def said(self, name: str) -> bool:
        manifest = self.store.get(Key("ml", name))
        return manifest is not None and "status" in manifest


async def test_many_that_only_start_say_so_one_after_the_other() -> None:
    fixture = Fixture("a", "b", "c")
    assert [await fixture.reconcile(name) for name in "abc"] == [None, None, PATIENCE]
    assert [fixture.said(name) for name in "abc"] == [True, True, False]
    fixture.now += PATIENCE.total_seconds()
    assert await fixture.reconcile("c") is None
    assert fixture.said("c")


async def test_a_verdict_needs_no_allowance() -> None:
    fixture = Fixture("a", "b", "broken")
    for name in ("a", "b", "broken"):
        await fixture.reconcile(name)
    assert fixture.said("broken")


async def test_saying_nothing_new_takes_nothing_from_the_allowance() -> None:
    fixture = Fixture("a", "b")
    for _ in range(5):
        await fixture.reconcile("a")
    await fixture.reconcile("b")
    assert fixture.said("b")
