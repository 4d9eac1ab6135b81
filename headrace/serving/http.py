"""What predictor and router have in common on the wire: the routes of the protocol, limits on what comes in, errors."""

from __future__ import annotations

import asyncio
import logging
from importlib.metadata import version
from typing import Protocol

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from headrace.serving.messages import JSON, Query, Reply
from headrace.serving.protocol import BINARY_HEADER, MODEL_VERSION, error_body, server_metadata

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


class Endpoint(Protocol):
    """What answers behind the routes."""

    @property
    def model_name(self) -> str:
        """The one model served."""

    @property
    def draining(self) -> bool:
        """Whether the process is on its way out; every answer then closes its connection."""

    def not_ready(self) -> str:
        """Why it cannot answer; empty when it can."""

    async def metadata(self) -> bytes | None:
        """Body of the model metadata; None while it is unknown."""

    async def infer(self, query: Query, patience: float | None) -> web.Response:
        """The answer to an inference request, within `patience` seconds where the caller set it."""


def respond(reply: Reply, headers: dict[str, str] | None = None) -> web.Response:
    """A reply on the wire."""
    found = {"Content-Type": reply.content_type, **(headers or {})}
    if reply.json_length is not None:
        found[BINARY_HEADER] = reply.json_length
    return web.Response(status=reply.status, body=reply.body, headers=found)


def error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error on the wire."""
    return web.Response(status=status, body=error_body(message), headers={"Content-Type": JSON, **(headers or {})})


class ProtocolServer:
    """The routes of the Open Inference Protocol over an `Endpoint`, for `aiohttp.web.Server`.

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
        self._endpoint = endpoint
        self._registry = registry
        self._max_body = max_body
        self._body_timeout = body_timeout
        name = endpoint.model_name
        self._infer_paths = frozenset({f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/{MODEL_VERSION}/infer"})
        self._server_metadata = server_metadata(version("headrace"))

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        """Answer one HTTP request."""
        try:
            if request.path in self._infer_paths:
                response = await self._infer(request)
            else:
                response = await self._other(request)
        except ConnectionError:
            # The client has gone; the server's connection ends with it.
            raise
        except Exception:
            log.exception("request failed", extra={"fields": {"path": request.path}})
            response = error(500, "internal error; the server's log has the details")
        response.headers["Server"] = "headrace"
        if self._endpoint.draining:
            response.headers[DRAINING_HEADER] = "true"
            response.force_close()
        return response

    async def _infer(self, request: web.BaseRequest) -> web.Response:
        if request.method != "POST":
            return error(405, f"{request.method} {request.path}: use POST", {"Allow": "POST"})
        headers = request.headers
        timeout_text = headers.get(TIMEOUT_HEADER)
        timeout = None
        if timeout_text is not None:
            if not timeout_text.isascii() or not timeout_text.isdigit() or len(timeout_text) > 12:
                return error(400, f"the header {TIMEOUT_HEADER} must be whole milliseconds, found {timeout_text!r}")
            timeout = int(timeout_text) / 1000
        body = await self._read(request)
        if isinstance(body, web.Response):
            return body
        passed_on = {name: headers[name] for name in PASSED_ON if name in headers}
        return await self._endpoint.infer(Query(body, headers.get(BINARY_HEADER), passed_on), timeout)

    async def _read(self, request: web.BaseRequest) -> bytes | web.Response:
        """The body, or the refusal of one that is too large, too slow or broken."""
        try:
            if (request.content_length or 0) > self._max_body:
                raise web.HTTPRequestEntityTooLarge(self._max_body, request.content_length or 0)
            if request.content.is_eof():
                # It came with the head, as most do: no timer is needed.
                return await request.read()
            async with asyncio.timeout(self._body_timeout):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            response = error(413, f"the body exceeds {self._max_body} bytes; send fewer rows per request")
        except TimeoutError:
            response = error(408, f"the body did not arrive within {self._body_timeout:g} s")
        except (web.RequestPayloadError, aiohttp.ClientPayloadError) as broken:
            response = error(400, f"the body cannot be read: {broken}")
        # What is left of the body is not worth waiting for.
        response.force_close()
        return response

    async def _other(self, request: web.BaseRequest) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            return error(405, f"{request.method} {request.path}: use GET", {"Allow": "GET"})
        match request.path.strip("/").split("/"):
            case ["v2"]:
                return web.Response(body=self._server_metadata, content_type=JSON)
            case ["v2", "health", "live"]:
                return _json(200, b'{"live":true}')
            case ["v2", "health", "ready"]:
                return self._ready(b'{"ready":true}')
            case ["metrics"]:
                return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
            case ["v2", "models", name, *rest]:
                return await self._model(name, rest)
        return error(404, f"no such path: {request.path}; the server speaks the Open Inference Protocol v2 under /v2")

    async def _model(self, name: str, rest: list[str]) -> web.Response:
        served = self._endpoint.model_name
        if name != served:
            return error(404, f"unknown model {name!r}; this server serves {served!r}")
        if rest[:1] == ["versions"] and len(rest) > 1:
            if rest[1] != MODEL_VERSION:
                return error(404, f"unknown version {rest[1]!r} of model {name!r}; the version is {MODEL_VERSION!r}")
            rest = rest[2:]
        if rest == ["ready"]:
            return self._ready(f'{{"name":"{served}","ready":true}}'.encode())
        if rest:
            return error(404, f"no such path under model {name!r}: {'/'.join(rest)}")
        body = await self._endpoint.metadata()
        if body is None:
            return error(503, f"the metadata of model {name!r} is not known yet: {self._endpoint.not_ready()}")
        return _json(200, body)

    def _ready(self, body: bytes) -> web.Response:
        why_not = self._endpoint.not_ready()
        return error(503, f"not ready: {why_not}") if why_not else _json(200, body)


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type=JSON)
