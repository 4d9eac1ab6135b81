"""The load: raw HTTP/1.1 on kept connections, as fast as answers come or at a given rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """What one run saw.

    Attributes:
        seconds: Time of each answered request.
        failed: Requests with another status than 200.
        elapsed: Seconds of the run.
    """

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    elapsed: float = 0.0


async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> tuple[int, bytes]:
    """One request on a connection; its status and body."""
    writer.write(message)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    if b"content-length: " in head:
        return status, await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return status, body


async def closed_loop(port: int, message: bytes, connections: int, seconds: float) -> Outcome:
    """Each connection sends its next request when the last one is answered."""
    outcome = Outcome()
    begun = time.perf_counter()
    until = begun + seconds

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (at := time.perf_counter()) < until:
            status, _ = await one(reader, writer, message)
            if status == 200:
                outcome.seconds.append(time.perf_counter() - at)
            else:
                outcome.failed += 1
        writer.close()

    await asyncio.gather(*(send() for _ in range(connections)))
    outcome.elapsed = time.perf_counter() - begun
    return outcome


async def open_loop(port: int, message: bytes, connections: int, rate: float, seconds: float) -> Outcome:
    """Requests are due at fixed times; one that is sent late, as all connections were busy, has waited since then."""
    outcome = Outcome()
    begun = time.perf_counter()
    due: Iterator[float] = iter([begun + i / rate for i in range(int(rate * seconds))])

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in due:
            pause = at - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            status, _ = await one(reader, writer, message)
            if status == 200:
                outcome.seconds.append(time.perf_counter() - at)
            else:
                outcome.failed += 1
        writer.close()

    await asyncio.gather(*(send() for _ in range(connections)))
    outcome.elapsed = time.perf_counter() - begun
    return outcome
