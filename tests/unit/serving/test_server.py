"""The HTTP server on a real socket: what clients may send in which pieces, and what they may not."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from headrace.serving.server import MAX_HEAD, MAX_PIPELINED, HttpServer, Limits, Request, Response
from tests.unit.serving.waiting import until

POST = b"POST /echo HTTP/1.1\r\nHost: x\r\n"


class Echo:
    """Answers with the body that came; /wait until told."""

    def __init__(self) -> None:
        self.limits = Limits(max_body=1000, body_timeout=0.3, idle_timeout=0.5)
        self.go = asyncio.Event()
        self.waiting = 0
        self.cancelled = 0
        self.seen: list[Request] = []

    async def __call__(self, request: Request) -> Response:
        self.seen.append(request)
        if request.path == "/wait":
            self.waiting += 1
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if request.path == "/large":
            return Response(200, b"x" * 50_000_000)
        return Response(200, request.body or b"empty")

    def refuse(self, status: int, message: str) -> Response:
        return Response(status, message.encode())


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Echo, HttpServer, int]]:
    loop = asyncio.get_running_loop()
    echo = Echo()
    server = HttpServer(echo, loop)
    listener = await loop.create_server(server.connection, "127.0.0.1", 0)
    sweep = asyncio.ensure_future(server.run())
    try:
        yield echo, server, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await server.shutdown(0.1)
        sweep.cancel()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes], bytes]:
    """The next answer on a connection."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head[:-4].split(b"\r\n")
        headers = {name.lower(): value for name, value in (field.split(b": ", 1) for field in fields)}
        return int(line.split()[1]), headers, await reader.readexactly(int(headers[b"content-length"]))


async def exchange(port: int, *pieces: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """The answer to a request sent in pieces, each in a packet of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return await answer(reader)
    finally:
        writer.close()


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


@pytest.mark.parametrize(
    ("pieces", "status", "words"),
    [
        ([POST + b"Content-Length: 5\r\n\r\nhello"], 200, b"hello"),
        ([bytes([byte]) for byte in POST + b"Content-Length: 5\r\n\r\nhello"], 200, b"hello"),
        ([POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"hel", b"lo")], 200, b"hello"),
        ([POST + b"Content-Length: 0\r\n\r\n"], 200, b"empty"),
        ([b"GET http://x/echo?a=b HTTP/1.1\r\nHost: x\r\n\r\n"], 200, b"empty"),
        ([b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi"], 200, b"hi"),
        ([POST + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n"], 200, b"empty"),
        ([POST + b"Content-Length: 1001\r\n\r\n"], 413, b"1000 bytes"),
        ([POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"x" * 600, b"y" * 600)], 413, b"1000 bytes"),
        ([POST + b"Content-Length: 5\r\n\r\nhel"], 408, b"within 0.3 s"),
        ([POST + b"Content-Length: five\r\n\r\nhello"], 400, b"no HTTP request"),
        ([POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"], 400, b"no HTTP request"),
        ([POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"], 400, b"no HTTP request"),
        ([b"\x16\x03\x01\x02\x00\x01 tls"], 400, b"no HTTP request"),
        ([b"hello\r\n\r\n"], 400, b"no HTTP request"),
        ([POST + b"X: " + b"y" * MAX_HEAD + b"\r\n\r\n"], 431, b"65536 bytes"),
        ([b"GET /" + b"y" * MAX_HEAD + b" HTTP/1.1\r\n\r\n"], 431, b"65536 bytes"),
    ],
)
async def test_what_comes_is_answered_or_refused(pieces: list[bytes], status: int, words: bytes) -> None:
    async with listening() as (_, _, port):
        found, headers, body = await exchange(port, *pieces)
        assert found == status
        assert words in body
        assert b"date" in headers
        if status != 200 or b"HTTP/1.0" in pieces[0] or b"Upgrade" in pieces[0]:
            assert headers[b"connection"] == b"close"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_bodies(coding: str) -> None:
    compress = gzip.compress if coding == "gzip" else zlib.compress

    async def send(body: bytes, name: str = coding) -> tuple[int, bytes]:
        head = POST + f"Content-Encoding: {name}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        status, _, answered = await exchange(port, head + body)
        return status, answered

    async with listening() as (_, _, port):
        assert await send(compress(b"hello" * 100)) == (200, b"hello" * 100)
        status, text = await send(compress(b"x" * 100_000))
        assert (status, text) == (413, b"the body exceeds 1000 bytes; send fewer rows per request")
        assert (await send(b"no such thing"))[0] == 400
        assert (await send(compress(b"hello" * 100)[:-9]))[0] == 400
        assert (await send(b"hello", "br"))[0] == 415
        bare = zlib.compressobj(wbits=-15)
        assert await send(bare.compress(b"hello") + bare.flush(), "deflate") == (200, b"hello")


async def test_a_refusal_is_read_by_a_client_that_is_still_sending() -> None:
    async with listening() as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"Content-Length: 30000000\r\n\r\n")
        for _ in range(300):
            writer.write(b"x" * 100_000)
        status, _, body = await answer(reader)
        assert (status, body[:8]) == (413, b"the body")
        writer.close()


async def test_a_client_that_asks_first_is_told_to_continue_or_not() -> None:
    async with listening() as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await answer(reader))[2] == b"hello"
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n")
        assert (await answer(reader))[0] == 413
        writer.close()


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    count = 3 * MAX_PIPELINED
    async with listening() as (echo, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        for i in range(count):
            writer.write(POST + b"Content-Length: 4\r\n\r\n%04d" % i)
        await until(lambda: echo.waiting == 1, "the first is asked")
        assert len(echo.seen) == 1
        echo.go.set()
        assert (await answer(reader))[0] == 200
        assert [(await answer(reader))[2] for _ in range(count)] == [b"%04d" % i for i in range(count)]
        writer.close()


async def test_a_client_that_goes_cancels_its_request() -> None:
    async with listening() as (echo, server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: echo.waiting == 1, "it is asked")
        writer.close()
        await until(lambda: echo.cancelled == 1, "it is cancelled")
        await until(lambda: not server.connections, "the connection is gone")


async def test_clients_that_are_slow_are_not_waited_for() -> None:
    async with listening() as (_, server, port):
        writers = []
        for first in (b"", b"GET / HT", b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /large HTTP/1.1\r\n\r\n"):
            # The last one never reads its answer: 50 MB, more than the sockets hold.
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
            writer.write(first)
            writers.append(writer)
        await until(lambda: len(server.connections) == 4, "all are there")
        await until(lambda: not server.connections, "all have been let go")
        for writer in writers:
            writer.close()


async def test_leaving_closes_idle_connections_and_waits_for_the_others() -> None:
    async with listening() as (echo, server, port):
        idle, _ = await asyncio.open_connection("127.0.0.1", port)
        busy, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: echo.waiting == 1, "it is asked")
        leaving = asyncio.ensure_future(server.shutdown(10))
        assert await asyncio.wait_for(idle.read(), 5) == b""
        echo.go.set()
        status, headers, _ = await answer(busy)
        assert (status, headers[b"connection"]) == (200, b"close")
        await asyncio.wait_for(leaving, 5)


async def test_leaving_ends_what_does_not_end() -> None:
    async with listening() as (echo, server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: echo.waiting == 1, "it is asked")
        await asyncio.wait_for(server.shutdown(0.05), 5)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await until(lambda: echo.cancelled == 1, "its handler is cancelled")


async def test_aiohttp_as_a_client_with_keep_alive_and_a_streamed_body() -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"abc"

    async with listening() as (echo, server, port), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for _ in range(3):
            async with session.post("/echo?x=1", data=body(), headers={"X-Two": "a"}) as response:
                assert await response.read() == b"abcabcabc"
        assert len(server.connections) == 1
        assert (echo.seen[0].path, echo.seen[0].query, echo.seen[0].headers["x-two"]) == ("/echo", "x=1", "a")
        async with session.head("/echo") as response:
            assert response.headers["Content-Length"] == "5"
