"""The feature server: features over HTTP, from the cache or the online store.

    POST /v1/features   {"entities": {"driver_id": [1, 2]}, "inputs": {"amount": [9.5, 3]}, "features": ["trips"]}
    GET  /v1/metadata   the features, their types and hashes, and the version in the online store
    GET  /livez /readyz /metrics

It is ready once there is a version of its transform, and stays so: while the online store is down it answers 503 with
the reason, which says more than a refused connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from headrace.api.featureset import ServerReport
from headrace.api.featureset.served import HTTP_PORT, ServedFeatureSet
from headrace.api.meta import parse_duration
from headrace.features.answer import Answer, QuestionError
from headrace.features.metrics import Metrics
from headrace.features.online import OnlineStoreError
from headrace.features.reading import AsyncFeatureClient
from headrace.features.source import snapshot, version_of
from headrace.serving.drain import Leaving, Times
from headrace.serving.server import HttpServer, Limits, Request, Response
from headrace.storage import StorageError

log = logging.getLogger(__name__)

WATCH_INTERVAL = 1.0
"""Seconds between two looks at the online store's version."""
COUNT_INTERVAL = 10.0
"""Seconds between two times that popularity is written."""
COUNTED = 50_000
"""Entities counted between those; further ones are not."""
LIMITS = Limits(max_body=16 << 20, body_timeout=10.0, idle_timeout=75.0)
"""What a client may take."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server runs."""

    uri: str = field(repr=False)
    port: int = HTTP_PORT
    host: str | None = None
    times: Times = field(default_factory=Times)


class FeatureServer:
    """Answers requests; the tasks beside keep it up to date.

    Args:
        served: The FeatureSet.
        client: Reads its rows.
        report: Told what the operator should know.
    """

    def __init__(
        self,
        served: ServedFeatureSet,
        client: AsyncFeatureClient,
        report: Callable[[ServerReport], None] = lambda report: None,
    ) -> None:
        self._served = served
        self._client = client
        self._transform = served.spec.transform()
        self._report = report
        self._metrics = Metrics(served.name, client.cache)
        self._asked: Counter[bytes] = Counter()
        self._source_version = ""
        self._version = ""
        self._problem = ""
        self._empty = False
        self._ready = False
        self._leaving: Leaving | None = None

    @property
    def limits(self) -> Limits:
        """What a client may take."""
        return LIMITS

    def refuse(self, status: int, message: str) -> Response:
        """The answer to a request that breaks the limits or HTTP."""
        return _error(status, message)

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        try:
            response = await self._route(request)
        except Exception:
            log.exception("request failed", extra={"fields": {"path": request.path}})
            response = _error(500, "internal error; the server's log has the details")
        if self._leaving is not None and self._leaving.begun:
            response.close = True
        return response

    async def _route(self, request: Request) -> Response:
        match request.method, request.path:
            case "POST", "/v1/features":
                started = time.perf_counter()
                response = await self._features(request.body)
                self._metrics.requested(response.status, time.perf_counter() - started)
                return response
            case "GET", "/v1/metadata":
                return _json(200, self._metadata())
            case "GET" | "HEAD", "/livez":
                return _json(200, {"live": True})
            case "GET" | "HEAD", "/readyz":
                return _json(200, {"ready": True}) if self._ready else _error(503, f"not ready: {self._problem}")
            case "GET", "/metrics":
                return Response(200, generate_latest(self._metrics.registry), {"Content-Type": CONTENT_TYPE_LATEST})
            case _, "/v1/features":
                return _error(405, f"{request.method} {request.path}: use POST", {"Allow": "POST"})
        return _error(404, f"no such path: {request.path}; features are at POST /v1/features")

    async def _features(self, body: bytes) -> Response:
        try:
            entities, inputs, features = _fields(orjson.loads(body))
            answer = await self._answer(entities, inputs, features)
        except orjson.JSONDecodeError as error:
            return _error(400, f"the body is no JSON: {error}")
        except QuestionError as error:
            return _error(400, str(error))
        except OnlineStoreError as error:
            return _error(503, str(error), {"Retry-After": "1"})
        self._metrics.answered(answer)
        return _json(
            200,
            {
                "featureSet": self._served.name,
                "hash": self._transform.hash,
                "version": answer.version,
                "features": answer.features,
                "rows": answer.rows,
                "statuses": answer.statuses,
                "eventTimestamps": answer.event_timestamps,
            },
        )

    async def _answer(
        self, entities: Mapping[str, Any], inputs: Mapping[str, Any], features: list[str] | None
    ) -> Answer:
        client = self._client
        question = client.answerer.question(entities, inputs, features)
        rows, current = await client.rows(question.names)
        if len(self._asked) < COUNTED:
            self._asked.update(question.names)
        return client.answerer.answer(question, rows, current.decode(), time.time())

    def _metadata(self) -> dict[str, Any]:
        transform = self._transform
        return {
            "featureSet": self._served.name,
            "namespace": self._served.namespace,
            "hash": transform.hash,
            "version": self._version,
            "entities": dict(transform.entities),
            "inputs": dict(transform.inputs),
            "ttl": transform.ttl,
            "spec": self._served.spec.manifest(),
            "features": [
                {
                    "name": item.name,
                    "type": item.type,
                    "hash": item.hash,
                    "computed": "OnRequest" if item.on_request else "OnRefresh",
                }
                for item in transform.features
            ],
        }

    def tasks(self, leaving: Leaving) -> list[Coroutine[Any, Any, None]]:
        """What runs beside."""
        self._leaving = leaving
        return [self._client.listen(), self._watch_store(), self._watch_source(), self._count()]

    async def _watch_store(self) -> None:
        """Know which version there is, become ready with the first, and notice a store that was emptied."""
        warmed = False
        while True:
            try:
                current = await self._client.current()
                if current != self._client.cache.current and not (
                    current is None and self._client.cache.current is None
                ):
                    self._client.cache.become(current)
                if current is not None and not warmed:
                    warmed = True
                    found = await self._client.warm()
                    log.info("loaded the entities that are asked for most", extra={"fields": {"entities": found}})
                self._version = current.decode() if current else ""
                self._empty = current is None
                self._problem = "" if current else "the online store has no rows of this transform yet"
                self._ready = self._ready or bool(current)
            except OnlineStoreError as error:
                self._problem = str(error)
                self._version = ""
                self._empty = False
            self._metrics.loaded.set(1.0 if self._version else 0.0)
            self._tell()
            await asyncio.sleep(WATCH_INTERVAL)

    async def _watch_source(self) -> None:
        """Know which version the source has, where a change of it is to set off a refresh."""
        refresh = self._served.spec.refresh
        pause = parse_duration(refresh.poll_interval) / timedelta(seconds=1)
        said = ""
        while refresh.on_update:
            try:
                self._source_version = version_of(await asyncio.to_thread(snapshot, self._served.spec.source.uri))
                said = ""
            except StorageError as error:
                if str(error) != said:
                    log.warning("whether the source has changed is not known: %s", error)
                said = str(error)
            self._tell()
            await asyncio.sleep(pause)

    async def _count(self) -> None:
        """Write how often entities were asked for."""
        keep = self._client.cache.max_entities
        while keep:
            await asyncio.sleep(COUNT_INTERVAL)
            asked, self._asked = self._asked, Counter()
            if asked:
                try:
                    await self._client.count(dict(asked.most_common(2_000)), keep)
                except OnlineStoreError as error:
                    log.info("popularity was not written: %s", error)

    def _tell(self) -> None:
        self._report(
            ServerReport(
                source_version=self._source_version,
                version=self._version,
                empty=self._empty,
                problem=self._problem,
            )
        )


async def run_server(
    served: ServedFeatureSet,
    settings: ServerSettings,
    leaving: Leaving,
    report: Callable[[ServerReport], None] = lambda report: None,
    on_listening: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve until asked to leave.

    Raises:
        OnlineStoreError: The address of the online store is none.
    """
    cache = served.spec.server.cache
    client = AsyncFeatureClient(served.spec, served.namespace, served.name, settings.uri, cache.max_entities)
    handler = FeatureServer(served, client, report)
    loop = asyncio.get_running_loop()
    http = HttpServer(handler, loop)
    listener = await loop.create_server(http.connection, settings.host, settings.port, backlog=1024)
    tasks = [asyncio.ensure_future(task) for task in (http.run(), *handler.tasks(leaving))]
    asked = asyncio.ensure_future(leaving.wait())
    try:
        on_listening(int(listener.sockets[0].getsockname()[1]))
        await _until(asked, tasks)
        await asyncio.sleep(settings.times.drain)
    finally:
        listener.close()
        await http.shutdown(settings.times.grace)
        for task in (asked, *tasks):
            task.cancel()
        await asyncio.gather(asked, *tasks, return_exceptions=True)
        await client.close()


async def _until(asked: asyncio.Future[None], tasks: Sequence[asyncio.Future[None]]) -> None:
    """Wait until asked to leave; a task that fails ends the server with its exception, one that returns is done."""
    pending: set[asyncio.Future[None]] = {asked, *tasks}
    while not asked.done():
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def _fields(question: Any) -> tuple[dict[str, Any], dict[str, Any], list[str] | None]:
    if not isinstance(question, dict):
        raise QuestionError(f'expected an object such as {{"entities": {{"id": [1]}}}}, found {question!r:.60}')
    if unknown := set(question) - {"entities", "inputs", "features"}:
        raise QuestionError(f"{sorted(unknown)[0]!r} is none of entities, inputs and features")
    entities, inputs, features = question.get("entities"), question.get("inputs") or {}, question.get("features")
    if not isinstance(entities, dict):
        raise QuestionError(f"entities: expected an object of lists by key, found {entities!r:.60}")
    if not isinstance(inputs, dict):
        raise QuestionError(f"inputs: expected an object of lists by input, found {inputs!r:.60}")
    if features is not None and (
        not isinstance(features, list) or not features or not all(isinstance(item, str) for item in features)
    ):
        raise QuestionError(f"features: expected a list of names, found {features!r:.60}")
    return entities, inputs, features


def _json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, orjson.dumps(body), {"Content-Type": "application/json", **(headers or {})})


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json(status, {"error": message}, headers)
