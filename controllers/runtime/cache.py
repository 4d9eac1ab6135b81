"""Watch caches: one list and one watch per type, for as long as the process lives.

A cache first lists its type in pages, with a label selector that the server applies, then watches from the list's
resourceVersion on. When a watch ends, the next one starts where it ended, which costs nothing. Only when the server
no longer remembers that version (410 Gone) is everything listed again; the list then also says what was deleted
meanwhile, for which no event will ever come.

No failure ends it. A server that is down, a forbidden type, a timeout or an answer that makes no sense are retried
with backoff for ever, since nothing good comes of an operator that has silently stopped looking. What a person and
the liveness probe can see instead is `last_contact`: when the server last said anything about this type.

The official client's informer (`kubernetes.informer`) is synchronous, keeps whole objects and has no index; its
asynchronous half has none. That is why this one exists.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from controllers.runtime.backoff import Backoff
from controllers.runtime.client import NO_ANSWER, ApiClient, ApiError, collection_path
from controllers.runtime.objects import MANAGED_LABELS, Key, Manifest, ObjectType
from controllers.runtime.store import ObjectStore

logger = logging.getLogger(__name__)

PAGE_SIZE = 500
"""Objects per page of a list."""
WATCH_SECONDS = (240, 300)
"""Range of a watch's length; random, so that the watches of many types do not all end at once."""
PATIENCE = (3.0, 60.0)
"""Range of `CacheSet.patience` in seconds; the first is that of an API server that has little to do."""
SILENCE = 100.0
"""Seconds without any event that mean a dead connection; the server sends a bookmark about every minute."""


class _Expired(Exception):
    """The server no longer has the resourceVersion; only a new list helps."""


class WatchCache:
    """Keeps an ObjectStore equal to what the API server has, with some delay."""

    def __init__(
        self,
        client: ApiClient,
        type_: ObjectType,
        *,
        store: ObjectStore | None = None,
        backoff: Backoff | None = None,
        page_size: int = PAGE_SIZE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            client: The API server.
            type_: What to watch; `managed_only` adds the label selector.
            store: Where the objects go; by default a new one.
            backoff: Delays after failures in a row.
            page_size: Objects per page of a list.
            clock: Time of `last_contact`.
        """
        self.type = type_
        self.store = store if store is not None else ObjectStore(type_, parsed=not type_.managed_only)
        self.synced = asyncio.Event()
        """Set once the first list is complete, and never cleared."""
        self.last_contact = clock()
        """When the server last answered or sent an event, by `clock`."""
        self.lists = 0
        """Lists completed."""
        self._client = client
        self._backoff = backoff or Backoff(base=0.5, cap=30.0)
        self._page_size = page_size
        self._clock = clock
        self._failures = 0
        self._version = ""

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                if not self._version:
                    self._version = await self._list()
                    self.lists += 1
                    self.synced.set()
                await self._watch()
            except _Expired:
                logger.info("the watch of %s expired, listing again", self.type.plural)
                self._version = ""
            except ApiError as error:
                self._failures += 1
                delay = max(self._backoff.delay(self._failures), error.retry_after or 0.0)
                log = logger.info if self._failures == 1 and error.status == NO_ANSWER else logger.warning
                log("cannot watch %s, trying again in %.1f s: %s", self.type.plural, delay, error)
                await asyncio.sleep(delay)
            except Exception:
                # An object that cannot be read is a bug, here or in the server; still the cache must not stop for it.
                self._failures += 1
                self._version = ""
                delay = self._backoff.delay(self._failures)
                logger.exception("watching %s failed, listing again in %.1f s", self.type.plural, delay)
                await asyncio.sleep(delay)

    def _selector(self) -> dict[str, str]:
        selector = {"fieldSelector": self.type.fields} if self.type.fields else {}
        if self.type.managed_only:
            selector["labelSelector"] = ",".join(f"{name}={value}" for name, value in MANAGED_LABELS.items())
        return selector

    def _kept(self, manifest: Manifest) -> Manifest:
        return manifest if self.type.reduce is None else self.type.reduce(manifest)

    async def _list(self) -> str:
        """List all objects into the store; returns the resourceVersion to watch from."""
        listing = self.store.list()
        params = {"limit": str(self._page_size), **self._selector()}
        while True:
            try:
                page = await self._client.get(collection_path(self.type), params)
            except ApiError as error:
                if error.status == 410:  # the continue token expired
                    raise _Expired from error
                raise
            self._contact()
            # Items of a list carry neither; a manifest should be whole wherever it came from.
            whole = {"apiVersion": self.type.api_version, "kind": self.type.kind}
            for item in page["items"]:
                listing.put(self._kept(whole | item))
            metadata = page["metadata"]
            if not metadata.get("continue"):
                version: str = metadata["resourceVersion"]
                listing.finish(int(version))
                return version
            params["continue"] = metadata["continue"]

    async def _watch(self) -> None:
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
            **self._selector(),
        }
        started = self._clock()
        try:
            async for event in self._client.stream(collection_path(self.type), params, silence=SILENCE):
                self._take(event)
        except ApiError as error:
            if error.status == 410:
                raise _Expired from error
            raise
        if self._clock() - started < 1.0:
            # A proxy that ends every watch at once must not make a busy loop of this one.
            raise ApiError(NO_ANSWER, "WatchEnded", "the server ended the watch at once")

    def _take(self, event: Mapping[str, Any]) -> None:
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            if item.get("code") == 410:
                raise _Expired
            raise ApiError(item.get("code") or NO_ANSWER, item.get("reason") or "", item.get("message") or "")
        self._contact()
        if kind == "DELETED":
            self.store.deleted(item)
        elif kind != "BOOKMARK":
            self.store.put(self._kept(item))
        self._version = item["metadata"]["resourceVersion"]
        self.store.seen = int(self._version)

    def _contact(self) -> None:
        self.last_contact = self._clock()
        self._failures = 0


class CacheSet:
    """The caches of every type that some controller owns or reads; what `gather` sees of the cluster."""

    def __init__(self, caches: Iterable[WatchCache] = (), *, latency: Callable[[], float] = lambda: 0.0) -> None:
        """
        Args:
            caches: One per type.
            latency: Seconds that the API server takes for an answer, lately.
        """
        self._caches: dict[ObjectType, WatchCache] = {cache.type: cache for cache in caches}
        self._latency = latency

    def __iter__(self) -> Iterator[WatchCache]:
        return iter(self._caches.values())

    def store(self, type_: ObjectType) -> ObjectStore:
        """The store of a type.

        Raises:
            LookupError: The type is not watched.
        """
        try:
            return self._caches[type_].store
        except KeyError as error:
            raise LookupError(
                f"{type_.kind} is not watched: name it in the controller's `owns` or `reads`, with watched=True"
            ) from error

    def owned(self, type_: ObjectType, namespace: str, owner_uid: str) -> Sequence[Manifest]:
        """Objects of the type that belong to the resource of this namespace and uid, by name."""
        return self.store(type_).owned(namespace, owner_uid)

    def get(self, type_: ObjectType, key: Key) -> Manifest | None:
        """One object, or None when the cache has none."""
        return self.store(type_).get(key)

    def all(self, type_: ObjectType) -> Sequence[Manifest]:
        """Every object of the type."""
        return self.store(type_).all()

    def holds(self, type_: ObjectType) -> bool:
        """Whether every object of the type is here: it is watched and was listed."""
        cache = self._caches.get(type_)
        return cache is not None and cache.synced.is_set() and not type_.managed_only

    def patience(self) -> timedelta:
        """How long news that change no verdict may be gathered before they are written.

        A hundred answers of the API server: so what is said for completeness is at most some percent of what it does,
        and while thousands of resources come up at once, it is not asked to store how far each of them is.
        """
        seconds = min(max(100 * self._latency(), PATIENCE[0]), PATIENCE[1])
        return timedelta(seconds=seconds)

    def synced(self) -> bool:
        """Whether every type was listed at least once."""
        return all(cache.synced.is_set() for cache in self._caches.values())

    async def wait_synced(self) -> None:
        """Return when every type was listed."""
        for cache in self._caches.values():
            await cache.synced.wait()
