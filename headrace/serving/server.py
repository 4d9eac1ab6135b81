"""The HTTP/1.1 server: requests read whole, with limits on each part of one, and answered one after the other.

A general server spends more on a request than a router's whole work on it (benchmarks/serving_router). This one does
what an inference server needs: keep-alive, pipelining, chunked and compressed bodies, `Expect: 100-continue`; and it
guards what comes in, since anybody may connect:

- a head of at most `MAX_HEAD` bytes (431), complete within `idle_timeout` of the connection or of the last answer;
- a body of at most `max_body` bytes, compressed or not (413), complete within `body_timeout` (408);
- bytes that are no HTTP are answered with 400; llhttp (by httptools) refuses what could be read in two ways;
- an answer that its client does not read within `idle_timeout` ends the connection, and while it is not read no
  further request of the connection is begun.

A refused request's body may still be on its way. The refusal is written, what comes is thrown away for `LINGER`
seconds and then the connection is closed: closing at once would reset it, and the client might never see why.
When a client goes while its request is being answered, the handler is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol, cast

import httptools

log = logging.getLogger(__name__)

MAX_HEAD = 64 * 1024
"""Bytes of a request line and its headers."""
MAX_PIPELINED = 16
"""Requests of a connection that wait for the one before; beyond them nothing is read."""
LINGER = 5.0
"""Seconds for which a refused request's body is still read."""
SWEEP = 1.0
"""Seconds between two looks for connections whose time is over."""
INLINE_DECOMPRESSION = 256 * 1024
"""Bytes of a compressed body up to which it is decompressed on the event loop."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nServer: headrace\r\n" for status in HTTPStatus
}
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's argument for each content coding."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    Attributes:
        path: Without the query.
        headers: By lower-case name; repeated ones joined by commas.
        body: Decompressed.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""
    query: str = ""


@dataclass(slots=True)
class Response:
    """One HTTP answer; Content-Length, Date and Server are added to its headers.

    Attributes:
        close: Ask the client to close the connection, and close it.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take.

    Attributes:
        max_body: Bytes of a request body, compressed or not.
        body_timeout: Seconds for it to arrive.
        idle_timeout: Seconds for a request's head, between two requests, and for an answer to be read.
    """

    max_body: int
    body_timeout: float
    idle_timeout: float


class Handler(Protocol):
    """What answers requests."""

    @property
    def limits(self) -> Limits:
        """What a client may take."""

    async def __call__(self, request: Request) -> Response:
        """The answer; cancelled when the client has gone."""

    def refuse(self, status: int, message: str) -> Response:
        """The answer to a request that breaks the limits or HTTP."""


class _Refused(Exception):
    """A request that is not handled."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HttpServer:
    """The connections of one handler. Lives on one event loop.

    `loop.create_server(server.connection, …)` makes it listen; `run` guards the connections' times beside it.
    """

    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        self.handler = handler
        self.limits = handler.limits
        self.loop = loop
        self.connections: set[_Connection] = set()
        self.leaving = False
        self._empty = asyncio.Event()
        self._date_second = 0
        self._date = ""

    def connection(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Connection(self)

    async def run(self) -> None:
        """Look after the connections' times until cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP, self.limits.body_timeout / 4))
            now = self.loop.time()
            for connection in list(self.connections):
                connection.check(now)

    async def shutdown(self, grace: float) -> None:
        """Close idle connections, let requests in flight finish within `grace` seconds, and end what is left."""
        self.leaving = True
        for connection in list(self.connections):
            connection.leave()
        try:
            async with asyncio.timeout(grace):
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            log.warning("requests ended unanswered", extra={"fields": {"connections": len(self.connections)}})
        for connection in list(self.connections):
            connection.abort()

    def gone(self, connection: _Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def date(self) -> str:
        """The Date header's line, made once a second."""
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n"
        return self._date


@dataclass(frozen=True, slots=True)
class _Whole:
    """A request that has arrived, and whether its connection lasts."""

    request: Request
    keep_alive: bool
    coding: str = ""
    refusal: Response | None = None


class _Connection(asyncio.Protocol):
    __slots__ = (
        "_body_since",
        "_chunks",
        "_head_size",
        "_headers",
        "_lingering",
        "_loop",
        "_parser",
        "_paused",
        "_queue",
        "_refused",
        "_server",
        "_since",
        "_size",
        "_task",
        "_transport",
        "_unread_since",
        "_url",
    )

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = server.loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._task: asyncio.Task[None] | None = None
        self._queue: deque[_Whole] = deque()
        self._paused = False
        self._refused = False
        self._lingering = 0.0
        # Times on the loop's clock; 0 where there is nothing to wait for.
        self._since = self._loop.time()
        self._body_since = 0.0
        self._unread_since = 0.0
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_size = 0
        self._chunks: list[bytes] = []
        self._size = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Another protocol is offered and not taken: the request is answered as it is, and is the last one.
            self._refused = True
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, _Refused):
                raise
            self._refuse(cause.status, str(cause))
        except httptools.HttpParserError as error:
            self._refuse(400, f"no HTTP request: {error}")

    def eof_received(self) -> None:
        # Half a connection is none: there is nobody to tell.
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()
        self._server.gone(self)

    def pause_writing(self) -> None:
        self._unread_since = self._loop.time()

    def resume_writing(self) -> None:
        self._unread_since = 0.0
        self._next()

    # httptools

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._head_size = 0
        self._chunks = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known},{text}"

    def on_headers_complete(self) -> None:
        headers = self._headers
        length = headers.get("content-length")
        if length is not None:
            # llhttp has checked that it is a number.
            if int(length) > self._server.limits.max_body:
                raise self._too_large()
            if length == "0":
                return
        elif "transfer-encoding" not in headers:
            return
        self._body_since = self._loop.time()
        if headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._server.limits.max_body:
            raise self._too_large()
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        self._body_since = 0.0
        chunks, self._chunks = self._chunks, []
        url = httptools.parse_url(self._url) if self._url[:1] != b"/" or b"?" in self._url else None
        path = self._url if url is None else url.path or b"/"
        query = b"" if url is None else url.query or b""
        request = Request(
            self._parser.get_method().decode("latin-1"),
            path.decode("latin-1"),
            self._headers,
            chunks[0] if len(chunks) == 1 else b"".join(chunks),
            query.decode("latin-1"),
        )
        coding = self._headers.get("content-encoding", "").strip().lower() if chunks else ""
        parser = self._parser
        # HTTP/1.0 has keep-alive as a habit, not as a rule.
        lasts = parser.should_keep_alive() and not parser.should_upgrade() and parser.get_http_version() != "1.0"
        self._take(_Whole(request, lasts, coding))

    # the rest

    def _count_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > MAX_HEAD:
            raise _Refused(431, f"the request's line and headers exceed {MAX_HEAD} bytes")

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the body exceeds {self._server.limits.max_body} bytes; send fewer rows per request")

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be handled after the requests before it, then close."""
        self._refused = True
        self._body_since = 0.0
        self._chunks = []
        response = self._server.handler.refuse(status, message)
        self._take(_Whole(Request("", "", {}), False, refusal=response))

    def _take(self, whole: _Whole) -> None:
        self._since = 0.0
        self._queue.append(whole)
        if self._task is None:
            self._next()
        elif len(self._queue) >= MAX_PIPELINED and self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _next(self) -> None:
        """Begin the next request, unless one is in progress or the last answer has not been read."""
        transport = self._transport
        if self._task is not None or transport is None or self._unread_since:
            return
        if not self._queue:
            return
        whole = self._queue.popleft()
        if self._paused and len(self._queue) < MAX_PIPELINED:
            self._paused = False
            transport.resume_reading()
        if whole.refusal is not None:
            self._write(whole.refusal, False, False)
            return
        self._task = self._loop.create_task(self._answer(whole))

    async def _answer(self, whole: _Whole) -> None:
        request = whole.request
        try:
            if whole.coding and whole.coding != "identity":
                body = await self._decompressed(request.body, whole.coding)
                request = Request(request.method, request.path, request.headers, body, request.query)
            response = await self._server.handler(request)
        except _Refused as refused:
            response = self._server.handler.refuse(refused.status, str(refused))
        except BaseException:
            if self._transport is not None:
                self._transport.abort()
            raise
        finally:
            self._task = None
        self._write(response, whole.keep_alive, request.method == "HEAD")
        self._next()

    async def _decompressed(self, body: bytes, coding: str) -> bytes:
        if coding not in _WINDOW_BITS:
            raise _Refused(415, f"the Content-Encoding {coding!r} is none of identity, gzip and deflate")
        if len(body) <= INLINE_DECOMPRESSION:
            return self._decompress(body, coding)
        return await asyncio.to_thread(self._decompress, body, coding)

    def _decompress(self, body: bytes, coding: str) -> bytes:
        most = self._server.limits.max_body
        bits = _WINDOW_BITS[coding]
        if coding == "deflate" and (len(body) < 2 or body[0] & 15 != 8 or int.from_bytes(body[:2], "big") % 31):
            # Some clients send the bare deflate stream without zlib's head (RFC 9110, 8.4.1.2).
            bits = -15
        try:
            decompressor = zlib.decompressobj(bits)
            found = decompressor.decompress(body, most + 1)
            if len(found) <= most and not decompressor.eof:
                raise _Refused(400, f"the body cannot be read: its {coding} data is cut off")
        except zlib.error as error:
            raise _Refused(400, f"the body cannot be read: it is no {coding} data ({error})") from None
        if len(found) > most:
            raise self._too_large()
        return found

    def _write(self, response: Response, keep_alive: bool, head_only: bool) -> None:
        transport = self._transport
        if transport is None:
            return
        close = response.close or not keep_alive or self._server.leaving
        body = response.body
        lines = [_STATUS_LINES[response.status]]
        lines += [f"{name}: {value}\r\n" for name, value in response.headers.items()]
        lines.append(self._server.date())
        if response.status != 204:
            lines.append(f"Content-Length: {len(body)}\r\n")
        lines.append("Connection: close\r\n\r\n" if close else "\r\n")
        head = "".join(lines).encode("latin-1", "replace")
        if head_only or not body:
            transport.write(head)
        elif len(body) < 65536:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        if not close:
            self._since = self._loop.time()
            return
        if self._refused and transport.can_write_eof():
            transport.write_eof()
            self._lingering = self._loop.time()
        else:
            transport.close()
        self._queue.clear()
        self._refused = True

    def check(self, now: float) -> None:
        """End what takes too long."""
        limits = self._server.limits
        if self._transport is None:
            return
        if self._lingering:
            if now - self._lingering > LINGER:
                self._transport.abort()
        elif self._body_since and now - self._body_since > limits.body_timeout:
            self._refuse(408, f"the body did not arrive within {limits.body_timeout:g} s")
        elif self._unread_since and now - self._unread_since > limits.idle_timeout:
            self._transport.abort()
        elif self._since and now - self._since > limits.idle_timeout and not self._body_since:
            self._transport.close()

    def leave(self) -> None:
        """Close the connection unless a request is arriving or being answered."""
        if self._transport is not None and self._task is None and not self._queue and not self._body_since:
            self._transport.close()

    def abort(self) -> None:
        """End it, whatever it does."""
        if self._transport is not None:
            self._transport.abort()
