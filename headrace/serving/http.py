"""What predictor and router have in common on the wire: the routes of the protocol, limits on what comes in, errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Protocol

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest

from headrace.serving import openapi
from headrace.serving.messages import JSON, Query, Reply
from headrace.serving.protocol import BINARY_HEADER, MODEL_VERSION, error_body, server_metadata
from headrace.serving.rows import specs_of, to_request, to_rows
from headrace.serving.server import Limits, Request, Response
from headrace.serving.tensors import RequestError

log = logging.getLogger(__name__)

TIMEOUT_HEADER = "headrace-timeout-ms"
"""Request header: milliseconds that the caller waits for the answer."""
PASSED_ON = ("traceparent", "tracestate", "baggage", "x-request-id")
"""Request headers that go on to a replica."""
MAX_BODY = 64 * 1024 * 1024
"""Bytes of a request body, after decompression."""
BODY_TIMEOUT = 30.0
"""Seconds for a request's body to arrive."""
DRAINING_HEADER = "headrace-draining"
"""Response header: the server is leaving, and answers until it has left."""
IDLE_TIMEOUT = 75.0
"""Seconds for a request's headers, and between two requests of a connection."""
METADATA_AGE = 1.0
"""Seconds for which the model's metadata is taken to be what it was, for rows and the description of the service."""
INLINE_ROWS = 64 * 1024
"""Bytes of a body of rows up to which it becomes tensors on the event loop, and not in a thread."""
RETRY_AFTER = {"Retry-After": "1"}
_BINARY_HEADER = BINARY_HEADER.lower()


class Endpoint(Protocol):
    """What answers behind the routes."""

    @property
    def model_name(self) -> str:
        """The one model served."""

    @property
    def draining(self) -> bool:
        """Whether the process is on its way out; every answer then closes its connection."""

    @property
    def unit_header(self) -> str:
        """Request header with the unit of an allocation, in lower case; empty for none."""

    def not_ready(self) -> str:
        """Why it cannot answer; empty when it can."""

    async def metadata(self) -> bytes | None:
        """Body of the model metadata; None while it is unknown."""

    async def infer(self, query: Query, patience: float | None) -> Response:
        """The answer to an inference request, within `patience` seconds where the caller set it."""


def respond(reply: Reply, headers: dict[str, str] | None = None) -> Response:
    """A reply on the wire."""
    found = {"Content-Type": reply.content_type, **(headers or {})}
    if reply.json_length is not None:
        found[BINARY_HEADER] = reply.json_length
    return Response(reply.status, reply.body, found)


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error on the wire."""
    return Response(status, error_body(message), {"Content-Type": JSON, **(headers or {})})


class ProtocolServer:
    """The routes of the Open Inference Protocol over an `Endpoint`, as a handler of `server.HttpServer`.

    Args:
        endpoint: What answers.
        registry: Metrics shown at /metrics.
        max_body: Bytes of a request body.
        body_timeout: Seconds for it to arrive.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        registry: CollectorRegistry,
        max_body: int = MAX_BODY,
        body_timeout: float = BODY_TIMEOUT,
    ) -> None:
        self.endpoint = endpoint
        self.limits = Limits(max_body, body_timeout, IDLE_TIMEOUT)
        self._version = version("headrace")
        self.server_metadata = server_metadata(self._version)
        self._registry = registry
        name = endpoint.model_name
        self._loop = asyncio.get_running_loop()
        self._known: bytes | None = None
        self._known_until = 0.0
        paths = (f"/v2/models/{name}", f"/v2/models/{name}/versions/{MODEL_VERSION}")
        self._infer_paths = frozenset(f"{path}/infer" for path in paths)
        self._rows_paths = frozenset(f"{path}/rows" for path in paths)
        self._requests = Counter(
            "headrace_protocol_requests_total",
            "Inference requests by the protocol that they came by and the HTTP status of the answer.",
            ["protocol", "status"],
            registry=registry,
        )
        self._counters: dict[tuple[str, int], Counter] = {}

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        try:
            if request.path in self._infer_paths:
                response = await self._infer(request)
            elif request.path in self._rows_paths:
                response = await self._rows(request)
            else:
                response = await self._other(request)
        except Exception:
            log.exception("request failed", extra={"fields": {"path": request.path}})
            response = error(500, "internal error; the server's log has the details")
        return self._leaving(response)

    def refuse(self, status: int, message: str) -> Response:
        """The answer to what is no request, or one too many."""
        return self._leaving(error(status, message))

    def _leaving(self, response: Response) -> Response:
        if self.endpoint.draining:
            response.headers[DRAINING_HEADER] = "true"
            response.close = True
        return response

    async def infer(
        self, protocol: str, headers: Mapping[str, str], body: bytes, deadline: float | None = None
    ) -> Response:
        """The answer to an inference request, whichever protocol it came by.

        Args:
            protocol: Name in the figures.
            headers: Headers of the request by lower-case name.
            body: Its body as REST has it.
            deadline: Seconds that are left for it, where the protocol says so itself.
        """
        timeout_text = headers.get(TIMEOUT_HEADER)
        patience = deadline
        if timeout_text is not None:
            if not timeout_text.isascii() or not timeout_text.isdigit() or len(timeout_text) > 12:
                self.count(protocol, 400)
                return error(400, f"the header {TIMEOUT_HEADER} must be whole milliseconds, found {timeout_text!r}")
            patience = int(timeout_text) / 1000
            if deadline is not None:
                patience = min(patience, deadline)
        passed_on = {name: headers[name] for name in PASSED_ON if name in headers}
        unit = headers.get(named, "") if (named := self.endpoint.unit_header) else ""
        query = Query(body, headers.get(_BINARY_HEADER), passed_on, unit)
        response = await self.endpoint.infer(query, patience)
        self.count(protocol, response.status)
        return response

    def count(self, protocol: str, status: int) -> None:
        """Count an inference request."""
        counter = self._counters.get((protocol, status))
        if counter is None:
            counter = self._counters[protocol, status] = self._requests.labels(protocol, str(status))
        counter.inc()

    def unknown(self, name: str, model_version: str | None) -> str:
        """What is wrong with a model's name and version; empty where they are those served."""
        served = self.endpoint.model_name
        if name != served:
            return f"unknown model {name!r}; this server serves {served!r}"
        if model_version is not None and model_version != MODEL_VERSION:
            return f"unknown version {model_version!r} of model {name!r}; the version is {MODEL_VERSION!r}"
        return ""

    async def _infer(self, request: Request) -> Response:
        if request.method != "POST":
            return error(405, f"{request.method} {request.path}: use POST", {"Allow": "POST"})
        return await self.infer("rest", request.headers, request.body)

    async def _rows(self, request: Request) -> Response:
        if request.method != "POST":
            return error(405, f"{request.method} {request.path}: use POST", {"Allow": "POST"})
        metadata = await self._metadata()
        specs = specs_of(metadata) if metadata is not None else ()
        if not specs:
            self.count("rows", 503)
            why = self.endpoint.not_ready() or "the step that answers now takes any; use infer"
            return error(503, f"the inputs of model {self.endpoint.model_name!r} are not known: {why}", RETRY_AFTER)
        try:
            if len(request.body) <= INLINE_ROWS:
                rows = to_request(request.body, specs)
            else:
                rows = await asyncio.to_thread(to_request, request.body, specs)
            headers = {**request.headers, _BINARY_HEADER: rows.json_length}
            response = await self.infer("rows", headers, rows.body)
            if response.status != 200:
                return response
            body = to_rows(self.endpoint.model_name, rows, response.body, response.headers.pop(BINARY_HEADER, None))
        except RequestError as wrong:
            self.count("rows", wrong.status)
            return error(wrong.status, str(wrong))
        response.headers["Content-Type"] = JSON
        response.body = body
        return response

    async def _metadata(self) -> bytes | None:
        """The model's metadata, at most `METADATA_AGE` old where it is known."""
        now = self._loop.time()
        if self._known is None or now > self._known_until:
            self._known = await self.endpoint.metadata()
            self._known_until = now + METADATA_AGE
        return self._known

    async def _described(self, as_page: bool) -> Response:
        found = await self._metadata()
        metadata = None if found is None else orjson.loads(found)
        name = self.endpoint.model_name
        if not as_page:
            return _json(200, orjson.dumps(openapi.document(name, self._version, metadata)))
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": openapi.CONTENT_SECURITY_POLICY,
            "X-Content-Type-Options": "nosniff",
        }
        return Response(200, openapi.page(name, self._version, metadata), headers)

    async def _other(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return error(405, f"{request.method} {request.path}: use GET", {"Allow": "GET"})
        match request.path.strip("/").split("/"):
            case ["v2"]:
                return _json(200, self.server_metadata)
            case ["v2", "health", "live"]:
                return _json(200, b'{"live":true}')
            case ["v2", "health", "ready"]:
                return self._ready(b'{"ready":true}')
            case ["openapi.json"]:
                return await self._described(as_page=False)
            case ["docs"] | [""]:
                return await self._described(as_page=True)
            case ["metrics"]:
                return Response(200, generate_latest(self._registry), {"Content-Type": CONTENT_TYPE_LATEST})
            case ["v2", "models", name, *rest]:
                return await self._model(name, rest)
        return error(404, f"no such path: {request.path}; the server speaks the Open Inference Protocol v2 under /v2")

    async def _model(self, name: str, rest: list[str]) -> Response:
        model_version = None
        if rest[:1] == ["versions"] and len(rest) > 1:
            model_version, rest = rest[1], rest[2:]
        why_not = self.unknown(name, model_version)
        if why_not:
            return error(404, why_not)
        if rest == ["ready"]:
            return self._ready(f'{{"name":"{name}","ready":true}}'.encode())
        if rest:
            return error(404, f"no such path under model {name!r}: {'/'.join(rest)}")
        body = await self.endpoint.metadata()
        if body is None:
            return error(503, f"the metadata of model {name!r} is not known yet: {self.endpoint.not_ready()}")
        return _json(200, body)

    def _ready(self, body: bytes) -> Response:
        why_not = self.endpoint.not_ready()
        return error(503, f"not ready: {why_not}") if why_not else _json(200, body)


def _json(status: int, body: bytes) -> Response:
    return Response(status, body, {"Content-Type": JSON})
