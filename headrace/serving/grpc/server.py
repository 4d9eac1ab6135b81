"""The gRPC server: the six methods of the protocol over the same endpoint that REST has.

What REST says in headers is in metadata here: `headrace-timeout-ms` and the tracing headers come with the call, the
step that answered and why not another go back as trailing metadata. The deadline of the call is the deadline of the
request, and a call that its client cancels is cancelled behind too.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
import orjson

from headrace.serving.grpc.translate import BadReply, from_rest, to_rest
from headrace.serving.grpc.wire import (
    METHODS,
    SERVICE,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from headrace.serving.http import Endpoint, ProtocolServer
from headrace.serving.protocol import BINARY_HEADER, MODEL_VERSION
from headrace.serving.tensors import RequestError

log = logging.getLogger(__name__)

MAX_CONNECTION_AGE = 300
"""Seconds after which a client is asked to connect anew: a gRPC client keeps one connection for ever, so that servers
added later would never be asked. Calls in flight end as they would."""
MAX_CONNECTION_GRACE = 60
"""Seconds that such a call has before its connection is closed."""
HEAD_ROOM = 1024 * 1024
"""Bytes that a message may be larger than the largest tensor data: names, shapes, parameters."""
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_BINARY_HEADER = BINARY_HEADER.lower()
Method = Callable[[Any, Any], Awaitable[Any]]
Metadata = tuple[tuple[str, str], ...]


def status_code(http_status: int) -> grpc.StatusCode:
    """The gRPC code that says the same as an HTTP status."""
    if http_status < 400:
        return grpc.StatusCode.OK
    fallback = grpc.StatusCode.FAILED_PRECONDITION if http_status < 500 else grpc.StatusCode.INTERNAL
    return _CODES.get(http_status, fallback)


class GrpcServer:
    """The service on a port.

    Args:
        protocol: The REST server beside it, whose endpoint, limits and figures it shares.
    """

    def __init__(self, protocol: ProtocolServer) -> None:
        self._protocol = protocol
        self._endpoint: Endpoint = protocol.endpoint
        size = protocol.limits.max_body + HEAD_ROOM
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE * 1000),
                ("grpc.max_connection_age_grace_ms", MAX_CONNECTION_GRACE * 1000),
                ("grpc.so_reuseport", 0),
                # Clients that ping idle connections, as many do behind load balancers, are no attack.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        methods: dict[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                methods[name],
                request_deserializer=asked.FromString,
                response_serializer=answered.SerializeToString,
            )
            for name, (asked, answered) in METHODS.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self, host: str | None, port: int) -> int:
        """Listen at an address (None for all) and a port (0 for any); returns the port.

        Raises:
            OSError: the port cannot be had.
        """
        address = "[::]" if host is None else f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_insecure_port(f"{address}:{port}")
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen at {address}:{port}: {error}") from error
        await self._server.start()
        return int(bound)

    async def stop(self, grace: float) -> None:
        """Take no more calls; those in flight have `grace` seconds."""
        await self._server.stop(grace)

    async def _server_live(self, request: Any, context: Any) -> Any:
        return ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any, context: Any) -> Any:
        return ServerReadyResponse(ready=not self._endpoint.not_ready())

    async def _model_ready(self, request: Any, context: Any) -> Any:
        known = request.name == self._endpoint.model_name and request.version in ("", MODEL_VERSION)
        return ModelReadyResponse(ready=known and not self._endpoint.not_ready())

    async def _server_metadata(self, request: Any, context: Any) -> Any:
        found = orjson.loads(self._protocol.server_metadata)
        return ServerMetadataResponse(name=found["name"], version=found["version"], extensions=found["extensions"])

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        await self._known(request.name, request.version, context)
        body = await self._endpoint.metadata()
        if body is None:
            why = f"the metadata of model {request.name!r} is not known yet: {self._endpoint.not_ready()}"
            await _refuse(context, 503, why)
        found = orjson.loads(body)
        response = ModelMetadataResponse(
            name=found["name"], versions=found.get("versions", []), platform=found.get("platform", "")
        )
        for target, tensors in ((response.inputs, found["inputs"]), (response.outputs, found["outputs"])):
            for tensor in tensors:
                target.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        return response

    async def _known(self, name: str, version: str, context: Any) -> None:
        why_not = self._protocol.unknown(name, version or None)
        if why_not:
            await _refuse(context, 404, why_not)

    async def _model_infer(self, request: Any, context: Any) -> Any:
        await self._known(request.model_name, request.model_version, context)
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        try:
            body, json_length = to_rest(request)
        except RequestError as wrong:
            self._protocol.count("grpc", wrong.status)
            await _refuse(context, wrong.status, str(wrong))
        headers[_BINARY_HEADER] = json_length
        try:
            response = await self._protocol.infer("grpc", headers, body, context.time_remaining())
        except Exception:
            log.exception("request failed", extra={"fields": {"method": "ModelInfer"}})
            await _refuse(context, 500, "internal error; the server's log has the details")
        told = tuple((name.lower(), value) for name, value in response.headers.items() if _tells(name))
        if response.status != 200:
            await _refuse(context, response.status, _message(response.body), told)
        context.set_trailing_metadata(told)
        try:
            return from_rest(response.body, response.headers.get(BINARY_HEADER), bool(request.raw_input_contents))
        except BadReply as error:
            log.error("bad reply", extra={"fields": {"reason": str(error)}})
            await _refuse(context, 500, str(error), told)


async def _refuse(context: Any, http_status: int, message: str, metadata: Metadata = ()) -> NoReturn:
    await context.abort(status_code(http_status), message, metadata)
    raise AssertionError("abort returned")


def _tells(name: str) -> bool:
    """Whether a response header is worth a gRPC client's while."""
    lower = name.lower()
    return lower.startswith("headrace-") or lower == "retry-after"


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode(errors="replace")
