"""kopf watches the platform's own kinds and hands each event to the kind's store; that is all it is used for here.

Reconciling is the runtime's. What kopf does not do by itself is done around it:

- After a relist kopf says nothing of resources that were deleted meanwhile. Every list that it makes is therefore
  followed by one of our own, of metadata alone, and what that does not contain is dropped from the store.
- It looks for a kind once, when it starts. A kind that the API server does not serve (its CRD is missing) is left out,
  named in the log and by `unserved`, and looked for every half minute; when it comes, all watchers are started anew.
- A watcher that meets an error it does not know ends, and with it the others; then all are started again.
- Its retries are limited by default; here they go on for ever, with growing delays.
- Whether a watch is alive is seen from outside: every answer to a request of kopf's for a kind is noted by the HTTP
  session that it is given, and a watch is silent for no longer than `WATCH_SECONDS` before the next request.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import kopf
from kopfrun import quiet_settings, run_kopf, why_unserved
from yarl import URL

from controllers.runtime.backoff import Backoff
from controllers.runtime.client import METADATA_LIST, ApiClient, ApiError, collection_path
from controllers.runtime.objects import Key, Manifest, ObjectType
from controllers.runtime.store import ObjectStore

logger = logging.getLogger(__name__)

PAGE_SIZE: Final = 500
WATCH_SECONDS: Final = 240
"""Length of one watch request."""
INACTIVITY_SECONDS: Final = 100.0
"""Seconds without an event or bookmark after which kopf connects anew."""


class _NoMemory(kopf.DiffBaseStorage):
    """kopf copies every resource at each event, to tell handlers of changes what changed; there are none here."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of the resource."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Nothing is stored."""


class _Forever:
    """An endless series of delays that can be iterated over again and again, as kopf wants it."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff

    def __iter__(self) -> Iterator[float]:
        return (self._backoff.delay(failures) for failures in itertools.count(1))


class ResourceFeed:
    """Fills the stores of the platform's kinds by kopf."""

    def __init__(self, client: ApiClient, stores: Sequence[ObjectStore], *, started: Callable[[], None]) -> None:
        """
        Args:
            client: The API server.
            stores: One per kind.
            started: Called each time that kopf has started, when its signal handlers are in place.
        """
        self._client = client
        self._started = started
        self._stores = {collection_path(store.type): store for store in stores}
        self._contact = dict.fromkeys(self._stores, time.monotonic())
        self._backoff = Backoff(base=1.0, cap=30.0)
        self._unserved: dict[str, str] = {}
        self._listed: asyncio.Queue[str] = asyncio.Queue()
        for store in stores:
            # kopf does not say how far the watch is, so only its own events bring resources into the store.
            store.seen = math.inf

    def silence(self) -> dict[str, float]:
        """Seconds since the API server last answered a request for the kind, by plural name; of the kinds it serves."""
        now = time.monotonic()
        return {
            self._stores[path].type.plural: now - last
            for path, last in self._contact.items()
            if path not in self._unserved
        }

    def unserved(self) -> dict[str, str]:
        """Kinds that are not watched because the API server does not serve them, and what it says instead."""
        return {self._stores[path].type.kind: problem for path, problem in self._unserved.items()}

    async def run(self) -> None:
        """Feed the stores until cancelled."""
        sweeping = asyncio.create_task(self._sweep(), name="sweep")
        try:
            failures = 0
            while True:
                await self._wait_served(self._stores)
                started = time.monotonic()
                if await self._watch():
                    logger.info("another kind is served now, starting kopf's watchers again with it")
                    continue
                failures = 1 if time.monotonic() - started > WATCH_SECONDS else failures + 1
                delay = self._backoff.delay(failures)
                logger.warning("kopf's watchers ended, starting them again in %.1f s", delay)
                await asyncio.sleep(delay)
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)

    async def _wait_served(self, paths: Collection[str]) -> None:
        """Look for kinds at the API server, and return when it serves one of them."""
        for failures in itertools.count(1):
            problems = {
                path: problem
                for path in paths
                if (problem := await why_unserved(self._client, self._stores[path].type)) is not None
            }
            for path in paths:
                self._unserved.pop(path, None)
                self._contact[path] = time.monotonic()
            self._unserved.update(problems)
            delay = self._backoff.delay(failures)
            for path, problem in problems.items():
                logger.warning("%s cannot be watched, looking again in %.0f s: %s", path, delay, problem)
            if len(problems) < len(paths):
                return
            await asyncio.sleep(delay)

    async def _watch(self) -> bool:
        """Run kopf until one of its tasks ends (False), or until a kind comes that was not served (True)."""
        registry = kopf.OperatorRegistry()
        for path, store in self._stores.items():
            if path not in self._unserved:
                _register(registry, store)
        missing = list(self._unserved)
        return await run_kopf(
            registry,
            self._settings(),
            server=self._client.server,
            session=self._client.session(self._answered),
            started=self._started,
            until=self._wait_served(missing) if missing else None,
        )

    def _settings(self) -> kopf.OperatorSettings:
        settings = quiet_settings()
        settings.persistence.diffbase_storage = _NoMemory()
        settings.watching.server_timeout = WATCH_SECONDS
        settings.watching.inactivity_timeout = INACTIVITY_SECONDS
        settings.watching.chunk_size = PAGE_SIZE
        settings.networking.error_backoffs = _Forever(self._backoff)
        # Each resource with news has a task of kopf's for this long.
        settings.queueing.idle_timeout = 1.0
        return settings

    def _answered(self, url: URL, status: int) -> None:
        """A request of kopf's was answered."""
        if status != 200 or url.path not in self._stores:
            return
        self._contact[url.path] = time.monotonic()
        if "watch" not in url.query and len(self._stores[url.path]):
            self._listed.put_nowait(url.path)

    async def _sweep(self) -> None:
        """After each list of kopf's, drop what was deleted unseen."""
        while True:
            path = await self._listed.get()
            for failures in itertools.count(1):
                try:
                    await self._drop_deleted(path)
                    break
                except ApiError as error:
                    delay = self._backoff.delay(failures)
                    logger.warning("cannot look for deleted %s, again in %.0f s: %s", path, delay, error)
                    await asyncio.sleep(delay)

    async def _drop_deleted(self, path: str) -> None:
        present: set[Key] = set()
        params = {"limit": str(PAGE_SIZE)}
        while True:
            page = await self._client.get(path, params, accept=METADATA_LIST)
            for item in page["items"]:
                present.add(Key(item["metadata"].get("namespace") or "", item["metadata"]["name"]))
            if not page["metadata"].get("continue"):
                self._stores[path].drop_missing(present, int(page["metadata"]["resourceVersion"]))
                return
            params["continue"] = page["metadata"]["continue"]


def _register(registry: kopf.OperatorRegistry, store: ObjectStore) -> None:
    type_: ObjectType = store.type
    group, _, version = type_.api_version.rpartition("/")

    @kopf.on.event(group=group, version=version, plural=type_.plural, id="store", registry=registry)
    async def take(event: Mapping[str, Any], **_: Any) -> None:
        manifest: Manifest = event["object"]
        if event["type"] == "DELETED":
            store.deleted(manifest)
        else:
            store.put(manifest)
