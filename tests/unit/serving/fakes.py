"""Predictor replicas that behave badly on purpose, on addresses of the loopback network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson

Behaviour = Callable[["FakeReplica", asyncio.StreamWriter], Awaitable[None]]
INFER = orjson.dumps({"model_name": "demo", "model_version": "1", "outputs": []})


def http(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} Status", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


async def answer(fake: FakeReplica, writer: asyncio.StreamWriter) -> None:
    """Answers, and says who it is."""
    body = orjson.dumps({"model_name": "demo", "model_version": "1", "outputs": [], "id": fake.host})
    writer.write(http(200, body))


async def stall(fake: FakeReplica, writer: asyncio.StreamWriter) -> None:
    """Says nothing."""
    await asyncio.sleep(60)


async def drip(fake: FakeReplica, writer: asyncio.StreamWriter) -> None:
    """Answers a byte at a time and never comes to the end."""
    for byte in http(200, INFER):
        writer.write(bytes([byte]))
        await asyncio.sleep(0.3)


async def reset(fake: FakeReplica, writer: asyncio.StreamWriter) -> None:
    """Reads the request and drops the connection."""
    writer.transport.abort()


async def half(fake: FakeReplica, writer: asyncio.StreamWriter) -> None:
    """Drops the connection in the middle of the body."""
    writer.write(http(200, INFER)[:-10])
    await writer.drain()
    writer.close()


async def no_http(fake: FakeReplica, writer: asyncio.StreamWriter) -> None:
    """Answers with something that is no HTTP."""
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def no_json(fake: FakeReplica, writer: asyncio.StreamWriter) -> None:
    """Answers 200 with something that is no JSON object."""
    writer.write(http(200, b"<html>welcome</html>"))


def status(code: int, *headers: str) -> Behaviour:
    async def act(fake: FakeReplica, writer: asyncio.StreamWriter) -> None:
        writer.write(http(code, b'{"error":"told to"}', *headers))

    return act


class FakeReplica:
    """One replica; `behaviour` is what it does with an inference request and may be changed at any time."""

    def __init__(self, host: str, behaviour: Behaviour) -> None:
        self.host = host
        self.behaviour = behaviour
        self.ready: Behaviour = status(200)
        self.port = 0
        self.asked = 0
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Like a killed process: nothing listens and every connection is reset."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = await reader.readexactly(length)
                if head.startswith(b"POST"):
                    self.asked += 1
                    self.heads.append(head)
                    self.bodies.append(body)
                    await self.behaviour(self, writer)
                else:
                    await self.ready(self, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)


@asynccontextmanager
async def replicas(*behaviours: Behaviour) -> AsyncIterator[list[FakeReplica]]:
    """Fake replicas on 127.0.0.2, 127.0.0.3, … and one common port."""
    fakes = [FakeReplica(f"127.0.0.{i + 2}", behaviour) for i, behaviour in enumerate(behaviours)]
    port = 0
    try:
        for fake in fakes:
            await fake.start(port)
            port = fake.port
        yield fakes
    finally:
        for fake in fakes:
            await fake.stop()
