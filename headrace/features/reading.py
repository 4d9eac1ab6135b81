"""Reading rows of the online store: in one round trip, all of one version, whatever a refresh does meanwhile.

`reading` is the logic without the wire: it yields what to ask and is sent the answer. `FeatureClient` and
`AsyncFeatureClient` put the wire to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from typing import Any

import redis
from redis.asyncio.cluster import RedisCluster

from headrace.api.featureset import FeatureSetSpec
from headrace.features.answer import Answer, Answerer
from headrace.features.cache import RowCache
from headrace.features.layout import Row, RowLayout
from headrace.features.online import MARK, Keys, OnlineStoreError, connect, connect_async, parse_address, unusable

log = logging.getLogger(__name__)

ATTEMPTS = 8
"""Round trips of one request; a refresh that ends meanwhile costs two."""
LISTEN_TIMEOUT = 15.0
"""Seconds without a word from the store after which it is asked whether it still listens."""
FAILURES = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)
"""What clients raise; a TimeoutError is an OSError."""
Ask = tuple[bytes, list[bytes]]
"""Current version, and the entities whose rows are asked for; no entities where only the version is."""
Told = tuple[Sequence[bytes | None], bytes | None]
"""Rows, and the current version; None where theirs is no longer it."""


class NotLoaded(OnlineStoreError):
    """The online store has no version of this transform."""


def reading(
    names: list[bytes], layout: RowLayout, cache: RowCache, what: str
) -> Generator[Ask, Told, tuple[list[Row | None], bytes]]:
    """Rows of entities, None where there is none, and the version that they all are of.

    Raises:
        NotLoaded: There is no version.
        OnlineStoreError: Refreshes follow each other faster than rows can be read.
    """
    current = cache.current
    for _ in range(ATTEMPTS):
        if current is None:
            _, current = yield b"", []
            if current is None:
                cache.become(None)
                raise NotLoaded(
                    f"the online store has no rows of {what} yet: wait for its first refresh, or look at the status of "
                    "the FeatureSet"
                )
            cache.become(current)
        found = cache.find(names) if current == cache.current else {}
        missing = [name for name in names if name not in found] if found else names
        if not missing:
            return [found[name] for name in names], current
        rows, seen = yield current, missing
        if seen == current:
            unpacked = {
                name: layout.unpack(row) if row is not None else None for name, row in zip(missing, rows, strict=True)
            }
            cache.put(current, unpacked)
            if not found:
                return [unpacked[name] for name in names], current
            found |= unpacked
            return [found[name] for name in names], current
        # A refresh ended meanwhile: rows from the cache, too, are of the version before.
        cache.become(seen)
        current = seen
    raise OnlineStoreError(
        f"refreshes of {what} follow each other faster than its rows can be read: refresh less often"
    )


def _version(current: bytes) -> str:
    return current.rpartition(b".")[0].decode()


class FeatureClient:
    """Reads features from the online store, for scripts and notebooks. One thread at a time.

    Args:
        spec: The FeatureSet's.
        namespace: Of the FeatureSet.
        name: Of the FeatureSet.
        uri: Address of the online store.
        clock: Seconds since 1970, for the ttl.
    """

    def __init__(
        self, spec: FeatureSetSpec, namespace: str, name: str, uri: str, clock: Callable[[], float] = time.time
    ) -> None:
        transform = spec.transform()
        self._keys = Keys(namespace, name, transform.hash)
        self._layout = RowLayout(transform.kept)
        self._answerer = Answerer(transform)
        self._cache = RowCache(0)
        self._address = parse_address(uri)
        self._client = connect(uri)
        self._clock = clock

    def get(
        self,
        entities: Mapping[str, Sequence[Any]],
        inputs: Mapping[str, Sequence[Any]] | None = None,
        features: Sequence[str] | None = None,
    ) -> Answer:
        """Features of entities.

        Args:
            entities: Values of each key, one per row.
            inputs: Values of request inputs, one per row.
            features: Their names; None for all, in the order of the spec.

        Raises:
            QuestionError: A key, input or feature is missing, unknown or of another type.
            NotLoaded: Nothing was loaded yet.
            OnlineStoreError: The store cannot be used.
        """
        question = self._answerer.question(entities, inputs or {}, features)
        what = f"FeatureSet {self._keys.namespace}/{self._keys.name}"
        steps = reading(question.names, self._layout, self._cache, what)
        try:
            ask = next(steps)
            while True:
                ask = steps.send(self._tell(*ask))
        except StopIteration as end:
            rows, current = end.value
        except FAILURES as error:
            raise unusable(self._address, error) from error
        return self._answerer.answer(question, rows, current.decode(), self._clock())

    def _tell(self, current: bytes, names: list[bytes]) -> Told:
        if not names:
            return (), self._client.get(self._keys.of("current"))
        seen, *rows = self._client.execute_command("HMGET", self._keys.rows(_version(current)), MARK, *names)
        return rows, seen

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


class AsyncFeatureClient:
    """Reads features from the online store, for servers: with a cache that the store keeps true while `listen` runs.

    Args:
        spec: The FeatureSet's.
        namespace: Of the FeatureSet.
        name: Of the FeatureSet.
        uri: Address of the online store.
        max_entities: Rows in the cache at most.
        clock: Seconds since 1970, for the ttl.
    """

    def __init__(
        self,
        spec: FeatureSetSpec,
        namespace: str,
        name: str,
        uri: str,
        max_entities: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        transform = spec.transform()
        self.keys = Keys(namespace, name, transform.hash)
        self.cache = RowCache(max_entities)
        self.answerer = Answerer(transform)
        self._layout = RowLayout(transform.kept)
        self._address = parse_address(uri)
        self._client = connect_async(uri)
        self._clock = clock

    async def get(
        self,
        entities: Mapping[str, Sequence[Any]],
        inputs: Mapping[str, Sequence[Any]] | None = None,
        features: Sequence[str] | None = None,
    ) -> Answer:
        """As `FeatureClient.get`."""
        question = self.answerer.question(entities, inputs or {}, features)
        rows, current = await self.rows(question.names)
        return self.answerer.answer(question, rows, current.decode(), self._clock())

    async def rows(self, names: list[bytes]) -> tuple[list[Row | None], bytes]:
        """Rows of entities by their keys, and the version that they are of. Raises as `get`."""
        steps = reading(names, self._layout, self.cache, f"FeatureSet {self.keys.namespace}/{self.keys.name}")
        with self._errors():
            try:
                ask = next(steps)
                while True:
                    ask = steps.send(await self._tell(*ask))
            except StopIteration as end:
                found: tuple[list[Row | None], bytes] = end.value
                return found

    async def current(self) -> bytes | None:
        """The version that is there; None for none.

        Raises:
            OnlineStoreError: The store cannot be used.
        """
        with self._errors():
            return (await self._tell(b"", []))[1]

    async def _tell(self, current: bytes, names: list[bytes]) -> Told:
        if not names:
            return (), await self._client.get(self.keys.of("current"))
        seen, *rows = await self._client.execute_command("HMGET", self.keys.rows(_version(current)), MARK, *names)
        return rows, seen

    async def listen(self) -> None:
        """Keep the cache true, for ever: what refreshes change is dropped; it is not used while the store is silent."""
        pause = 0.1
        while True:
            try:
                async for message in self._messages():
                    pause = 0.1
                    if message is None:
                        self.cache.trust(True)
                    else:
                        self.cache.apply(message)
            except (*FAILURES, ValueError, KeyError) as error:
                log.warning("the online store is not heard; nothing is answered from the cache: %s", error)
            finally:
                self.cache.trust(False)
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)

    async def _messages(self) -> AsyncIterator[bytes | None]:
        """None once it is listening, then each message."""
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()  # it finds its nodes, which a subscription alone does not make it do
        async with self._client.pubsub() as channel:
            await channel.subscribe(self.keys.of("changes"))
            asked = False
            while True:
                message = await channel.get_message(ignore_subscribe_messages=False, timeout=LISTEN_TIMEOUT)
                if message is None:
                    if asked:
                        raise TimeoutError("it does not answer a ping")
                    await channel.ping()
                    asked = True
                    continue
                asked = False
                if message["type"] == "subscribe":
                    yield None
                elif message["type"] == "message":
                    yield message["data"]

    async def count(self, asked: Mapping[bytes, int], keep: int) -> None:
        """Add to how often entities were asked for, of which the store remembers the first `keep`.

        Raises:
            OnlineStoreError: The store cannot be used.
        """
        popular = self.keys.of("popular")
        with self._errors():
            pipeline = self._client.pipeline(transaction=False)
            for name, times in asked.items():
                pipeline.zincrby(popular, times, name)
            pipeline.zremrangebyrank(popular, 0, -keep - 1)
            await pipeline.execute()

    async def warm(self, batch: int = 1000) -> int:
        """Load the entities that were asked for most into the cache; returns how many.

        Raises:
            OnlineStoreError: The store cannot be used.
        """
        with self._errors():
            names = await self._client.zrevrange(self.keys.of("popular"), 0, max(0, self.cache.max_entities - 1))
        for start in range(0, len(names), batch):
            await self.rows(names[start : start + batch])
        return len(names)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except FAILURES as error:
            raise unusable(self._address, error) from error
