"""The HTTP client of the hot path: keep-alive connections per address, one request on each at a time, whole answers.

A general client spends several times more on a request than the rest of the router does (benchmarks/serving_router),
on features that have no use between a router and its predictor: redirects, cookies, proxies, compression. Parsing is
llhttp's, by httptools. An answer must say its length, or be chunked.

A server may close an idle connection just when a request is written to it. Such a request was not read, so it is sent
again on a new connection; that is no failure of the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import httptools

IDLE = 50.0
"""Seconds after which an idle connection is not used again; servers keep them longer."""
MAX_ANSWER = 256 * 1024 * 1024
"""Bytes of an answer's body."""


class BadAnswer(OSError):
    """What came is no HTTP answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer.

    Attributes:
        headers: By lower-case name.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """What is written: the head as it goes on the wire, and the body."""

    head: bytes
    body: bytes = b""


@dataclass(slots=True, eq=False)
class Address:
    """A server and the idle connections to it, the one used last at the end."""

    host: str
    port: int
    idle: list[_Connection] = field(default_factory=list)

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def request(method: str, path: str, address: Address, headers: Mapping[str, str], body: bytes = b"") -> Request:
    """A request for `Client.send`. Names and values must be free of line breaks, as those of a parsed request are."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address.authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    lines.append("\r\n")
    return Request("\r\n".join(lines).encode("utf-8", "surrogateescape"), body)


class Client:
    """Sends requests. Lives on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, address: Address, message: Request) -> asyncio.Future[Answer]:
        """The answer, as a future; cancelling it closes the connection.

        The future's exception is an OSError: no connection, a connection lost, or `BadAnswer`.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        now = self._loop.time()
        while address.idle:
            connection = address.idle.pop()
            if connection.usable(now):
                connection.send(message, future)
                return future
            connection.close()
        self.send_anew(address, message, future)
        return future

    def send_anew(self, address: Address, message: Request, future: asyncio.Future[Answer]) -> None:
        """Send on a new connection."""
        task = self._loop.create_task(self._connect(address, message, future))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        future.add_done_callback(lambda done: task.cancel() if done.cancelled() else None)

    async def _connect(self, address: Address, message: Request, future: asyncio.Future[Answer]) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self, self._loop, address), address.host, address.port
            )
        except OSError as error:
            if not future.done():
                future.set_exception(error)
            return
        if future.done():
            connection.close()
        else:
            connection.send(message, future)

    def forget(self, address: Address) -> None:
        """Close the idle connections to a server."""
        for connection in address.idle:
            connection.close()
        address.idle.clear()

    def close(self) -> None:
        """End connections that are being made; those in use end with their requests."""
        for task in self._connecting:
            task.cancel()


class _Connection(asyncio.Protocol):
    """One connection and the answer that is arriving on it."""

    __slots__ = (
        "_address",
        "_chunks",
        "_client",
        "_future",
        "_headers",
        "_idle_since",
        "_loop",
        "_message",
        "_parser",
        "_reused",
        "_size",
        "_transport",
    )

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop, address: Address) -> None:
        self._client = client
        self._loop = loop
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._future: asyncio.Future[Answer] | None = None
        self._message: Request | None = None
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._size = 0
        self._reused = False
        self._idle_since = 0.0

    def usable(self, now: float) -> bool:
        """Whether a request may be written."""
        return self._transport is not None and not self._transport.is_closing() and now - self._idle_since < IDLE

    def send(self, message: Request, future: asyncio.Future[Answer]) -> None:
        """Write a request whose answer `future` takes."""
        transport = self._transport
        if transport is None:
            future.set_exception(ConnectionResetError("connection lost"))
            return
        self._future = future
        self._message = message
        future.add_done_callback(self._abandoned)
        if len(message.body) < 65536:
            transport.write(message.head + message.body)
        else:
            transport.write(message.head)
            transport.write(message.body)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _abandoned(self, future: asyncio.Future[Answer]) -> None:
        if future.cancelled() and future is self._future:
            self._future = None
            if self._transport is not None:
                self._transport.abort()

    def _fail(self, error: OSError) -> None:
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_exception(error)
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._future is None:
            # Nothing was asked, so nothing that comes can be trusted to belong to the next request.
            self.close()
            return
        self._message = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BadAnswer(f"no HTTP answer: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self in self._address.idle:
            self._address.idle.remove(self)
        future, self._future = self._future, None
        if future is None or future.done():
            return
        if self._reused and self._message is not None:
            self._client.send_anew(self._address, self._message, future)
        else:
            future.set_exception(exc if isinstance(exc, OSError) else ConnectionResetError("connection lost"))

    # httptools

    def on_message_begin(self) -> None:
        if self._future is None:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_ANSWER:
            self._fail(BadAnswer(f"the answer exceeds {MAX_ANSWER} bytes"))
            return
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, {}
        chunks, self._chunks = self._chunks, []
        self._size = 0
        future = self._future
        if status < 200 or future is None:
            # An interim answer: the real one follows.
            return
        self._future = None
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if self._parser.should_keep_alive() and self._transport is not None:
            self._reused = True
            self._idle_since = self._loop.time()
            self._address.idle.append(self)
        else:
            self.close()
        if not future.done():
            future.set_result(Answer(status, headers, body))
