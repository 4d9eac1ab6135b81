"""Runs the controllers of one process: caches first, then workers that take keys from each controller's queue.

What wakes a resource: a change of itself, at once; a change of a child, a moment later (`batch`), because a group of
pods that starts is a dozen events within a second and one look afterwards sees them all; and the slow resync, which
is there to find bugs, not to find changes. What does not wake it is the status in which an unsuccessful reconcile says
why: it is tried again when the backoff says, though the message be another one each time. When something that a whole
namespace shares is deleted, everybody there is looked at, and whoever needs it makes it again.

The own kinds' stores are filled from outside (`store`): by kopf in the operator, by `watch` in a test.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controllers.runtime.apply import Applier
from controllers.runtime.cache import CacheSet, WatchCache
from controllers.runtime.client import ApiClient
from controllers.runtime.controller import Controller, Overseeing
from controllers.runtime.events import EventRecorder
from controllers.runtime.metrics import Metrics
from controllers.runtime.namespace import NAMESPACE_TYPES
from controllers.runtime.objects import Key, Manifest, ObjectType
from controllers.runtime.queue import KeyedQueue, QueueClosed
from controllers.runtime.reconciler import Outcome, Reconciler
from controllers.runtime.store import ObjectStore, Owner
from headrace.api import Resource
from headrace.api.schema import KindInfo

logger = logging.getLogger(__name__)

LONGEST_BATCH = 2.0
"""Seconds for which a child's event is held back at most, while the API server is slow to answer."""


@dataclass(frozen=True, slots=True)
class ManagerOptions:
    """How the controllers of a process run.

    Attributes:
        workers: Reconciles of one kind at a time.
        concurrency: Writes under way at once.
        resync: Seconds between two looks at a resource that nothing happens to.
        batch: Seconds for which a child's event is held back, so that those that follow join it; longer while the API
            server is slow.
        drain: Seconds that reconciles under way have to finish when the process stops.
        identity: Name of this process in Events.
    """

    workers: int = 16
    concurrency: int = 32
    resync: float = 600.0
    batch: float = 0.2
    drain: float = 20.0
    identity: str = "headrace-operator"


@dataclass(slots=True)
class _Unit:
    """One controller with its queue and store."""

    reconciler: Reconciler[Any, Any]
    store: ObjectStore
    queue: KeyedQueue[Key]
    began: dict[Key, Manifest | None] = field(default_factory=dict)
    """What the workers have now, as it was when they took it."""
    restated: set[Key] = field(default_factory=set)
    """Those of them of which only the status is another one since."""
    workers: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.info.singular

    @property
    def info(self) -> KindInfo:
        """The kind's names."""
        resource: type[Resource] = self.reconciler.controller.resource
        return resource.info


class Manager:
    """The controllers of one process."""

    def __init__(
        self,
        client: ApiClient,
        controllers: Sequence[Controller[Any, Any]],
        metrics: Metrics,
        options: ManagerOptions | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or ManagerOptions()
        self.ready = asyncio.Event()
        """Set when all caches are filled and the workers run."""
        self._client = client
        self._metrics = metrics
        self._clock = clock
        caches = (WatchCache(client, type_) for type_ in watched_types(controllers))
        self.caches = CacheSet(caches, latency=lambda: client.latency)
        self._applier = Applier(client, self.caches, concurrency=self.options.concurrency)
        self._events = EventRecorder(client, instance=self.options.identity)
        self._units: dict[tuple[str, str], _Unit] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._drained = asyncio.Event()
        for controller in controllers:
            self._add(controller)
        for cache in self.caches:
            cache.store.subscribe(self._child_changed)
            if cache.type in NAMESPACE_TYPES:
                cache.store.subscribe(functools.partial(self._shared_changed, cache.store))
            self._report(cache)

    def store(self, resource: type[Resource]) -> ObjectStore:
        """Where the resources of a kind go as they are watched."""
        return self._unit(resource).store

    def queue(self, resource: type[Resource]) -> KeyedQueue[Key]:
        """The queue of a kind."""
        return self._unit(resource).queue

    def watch(self) -> list[WatchCache]:
        """Caches that fill the stores of the controllers' own kinds; run them where nothing else does."""
        return [WatchCache(self._client, unit.store.type, store=unit.store) for unit in self._units.values()]

    def silence(self) -> dict[str, float]:
        """Seconds since the API server last said anything, by watched type."""
        now = self._clock()
        return {cache.type.cache_name: now - cache.last_contact for cache in self.caches}

    async def run(self) -> None:
        """Fill the caches, then work until cancelled; `stop` ends it in an orderly way.

        Raises:
            Exception: A task that is to run for ever ended; the process cannot go on.
        """
        self._spawn(self._events.run(), "events")
        for cache in self.caches:
            self._spawn(cache.run(), f"cache of {cache.type.cache_name}")
        waiting = asyncio.create_task(self.caches.wait_synced())
        try:
            await self._first_of(waiting)
            for unit in self._units.values():
                unit.workers = [
                    self._spawn(self._work(unit), f"worker of {unit.name}") for _ in range(self.options.workers)
                ]
                self._spawn(self._resync(unit), f"resync of {unit.name}")
                self._metrics.max_workers.labels(unit.name).set(self.options.workers)
            self.ready.set()
            await self._first_of(None)
            # The workers end when `stop` is called, which still needs the task that writes Events.
            await self._drained.wait()
        finally:
            waiting.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Take nothing new, finish the reconciles under way, write the Events that wait."""
        try:
            for unit in self._units.values():
                unit.queue.close()
            workers = [task for unit in self._units.values() for task in unit.workers]
            if workers:
                _, late = await asyncio.wait(workers, timeout=self.options.drain)
                if late:
                    logger.warning("%d reconciles did not end within %g s", len(late), self.options.drain)
            await self._events.drain(2.0)
        finally:
            self._drained.set()

    def _unit(self, resource: type[Resource]) -> _Unit:
        return self._units[_group(resource.info.api_version), resource.info.kind]

    def _add(self, controller: Controller[Any, Any]) -> None:
        info = controller.resource.info
        store = ObjectStore(ObjectType(info.api_version, info.kind, info.plural, managed_only=False))
        self._metrics.resources(info.kind, store.all)
        reporter = self._metrics.queue(info.singular)
        queue: KeyedQueue[Key] = KeyedQueue(metrics=reporter, clock=self._clock)
        reporter.follow(queue.working.values)
        reconciler = Reconciler(controller, store, self.caches, self._applier, self._events)
        unit = _Unit(reconciler, store, queue)
        self._units[_group(info.api_version), info.kind] = unit
        store.subscribe(lambda key, _: self._resource_changed(unit, key))
        if isinstance(controller, Overseeing):
            controller.attach(store, self.caches, queue.add)

    def _resource_changed(self, unit: _Unit, key: Key) -> None:
        if key not in unit.store:
            last = not any(other.namespace == key.namespace for each in self._units.values() for other in each.store)
            self._applier.forget(unit.store.type.kind, key, last=last)
            unit.queue.forget(key)
        elif key not in unit.queue.working:
            unit.queue.add(key)
        elif _beside_status(unit.store.get(key)) == _beside_status(unit.began.get(key)):
            unit.restated.add(key)  # that worker wrote it; whether that is to be looked at depends on how it ends
        else:
            unit.queue.add_after(key, self.options.batch)

    def _child_changed(self, _: Key, owner: Owner | None) -> None:
        if owner is None:
            return
        unit = self._units.get((_group(owner.api_version), owner.kind))
        if unit is not None and owner.key in unit.store:
            # What a busy API server has still to say about the group comes later, and is then looked at together.
            unit.queue.add_after(owner.key, max(self.options.batch, min(5 * self._client.latency, LONGEST_BATCH)))

    def _shared_changed(self, store: ObjectStore, key: Key, _: Owner | None) -> None:
        if key in store:
            return
        for unit in self._units.values():
            for each in unit.store:
                if each.namespace == key.namespace:
                    unit.queue.add_after(each, self.options.batch)

    async def _work(self, unit: _Unit) -> None:
        queue, active = unit.queue, self._metrics.active_workers.labels(unit.name)
        while True:
            try:
                key = await queue.get()
            except QueueClosed:
                return
            with active.track_inprogress(), self._metrics.reconcile_time.labels(unit.name).time():
                unit.began[key] = unit.store.get(key)
                try:
                    self._go_on(unit, key, await unit.reconciler.reconcile(key, queue.failures(key)))
                finally:
                    unit.restated.discard(key)
                    del unit.began[key]
                    queue.done(key)

    def _go_on(self, unit: _Unit, key: Key, outcome: Outcome) -> None:
        self._metrics.reconciles.labels(unit.name, outcome.result).inc()
        if key in unit.restated and outcome.result in ("success", "requeue_after"):
            unit.queue.add_after(key, self.options.batch)
        if outcome.result in ("retry", "error"):
            self._metrics.reconcile_errors.labels(unit.name).inc()
            if outcome.result == "error":
                self._metrics.panics.labels(unit.name).inc()
            unit.queue.retry(key)
            return
        unit.queue.forget(key)
        if outcome.result == "terminal":
            self._metrics.terminal_errors.labels(unit.name).inc()
        if outcome.after is not None:
            unit.queue.add_after(key, outcome.after.total_seconds())

    async def _resync(self, unit: _Unit) -> None:
        while True:
            await asyncio.sleep(self.options.resync)
            for key in unit.store:
                unit.queue.add_after(key, random.random() * self.options.resync / 2)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.append(task)
        return task

    async def _first_of(self, waiting: asyncio.Task[None] | None) -> None:
        """Return when `waiting` is done or all workers ended; raise what ended any other task."""
        workers = {task for unit in self._units.values() for task in unit.workers}
        while True:
            running = {task for task in self._tasks if not task.done()} | ({waiting} if waiting else set())
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if waiting in done or (workers and all(task.done() for task in workers)):
                return

    def _report(self, cache: WatchCache) -> None:
        name = cache.type.cache_name
        self._metrics.cached_objects.labels(name).set_function(lambda: len(cache.store))
        self._metrics.watch_contact.labels(name).set_function(lambda: self._clock() - cache.last_contact)


def watched_types(controllers: Sequence[Controller[Any, Any]]) -> list[ObjectType]:
    """Types that some controller owns or reads and that are watched, each once."""
    types: Mapping[ObjectType, None] = dict.fromkeys(
        type_ for controller in controllers for type_ in (*controller.owns, *controller.reads) if type_.watched
    )
    return list(types)


def _beside_status(manifest: Manifest | None) -> Manifest:
    """All that is not changed by a write of the status."""
    manifest = manifest or {"metadata": {}}
    metadata = {name: value for name, value in manifest["metadata"].items() if name != "resourceVersion"}
    return {name: value for name, value in manifest.items() if name != "status"} | {"metadata": metadata}


def _group(api_version: str) -> str:
    return api_version.rpartition("/")[0]
