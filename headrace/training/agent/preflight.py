"""What each link of the ring can do, before training begins: agents measure round trips and bandwidth among themselves.

Each agent sends to the one whose rank comes after its own, all at once, as a ring all-reduce loads the links. The path
is the pods' network over one TCP connection, so the figure is what that path carries at least: gloo takes the same
path, NCCL may have a faster one (InfiniBand), but meets over this one. A link that is dead would otherwise show as
processes that wait for each other until a timeout of minutes; one that is slow, as a job that takes days longer.
"""

from __future__ import annotations

import asyncio
import hmac
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from headrace.training.agent.protocol import LIMIT, ProtocolError, encode, receive

PORT = 29401
CONNECT = 5.0
"""Seconds for a connection."""
TRANSFER = 5.0
"""Seconds of sending at most."""
SIZE = 32 << 20
"""Bytes that are sent at most; a good network carries them in much less than TRANSFER."""
CHUNK = 1 << 18
"""Bytes that the other side acknowledges at a time."""
ROUND_TRIPS = 20
SLOWER = 4.0
"""How many times slower than the median of links of its kind a link may be, where no bound is given."""
ENOUGH = 3
"""Links of a kind from which on their median says what is usual."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What counts as slow, and what follows; see `spec.topology.preflight`.

    Attributes:
        min_bandwidth: Bytes per second; 0: compare links with each other.
        max_round_trip: Seconds; 0: no bound.
        fail: End the job where a link is slow.
        timeout: Seconds in which dead links may come back before the job ends.
    """

    min_bandwidth: float = 0.0
    max_round_trip: float = 0.0
    fail: bool = False
    timeout: float = 120.0

    @classmethod
    def of(cls, told: Any) -> Settings | None:
        """From the member `preflight` of HEADRACE_AGENT; None where there is none.

        Raises:
            ValueError, TypeError, AttributeError: it is malformed.
        """
        if told is None:
            return None
        return cls(
            min_bandwidth=float(told.get("minBandwidth", 0)),
            max_round_trip=float(told.get("maxRoundTrip", 0)),
            fail=bool(told.get("fail", False)),
            timeout=float(told.get("timeout", 120)),
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is."""

    index: int
    node: str
    zone: str

    def __str__(self) -> str:
        where = ", ".join(
            text for text in (self.node and f"node {self.node}", self.zone and f"zone {self.zone}") if text
        )
        return f"worker {self.index}{f' ({where})' if where else ''}"


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the ring as it was measured.

    Attributes:
        source, target: Where it begins and ends.
        round_trip: Seconds, the median of several.
        bandwidth: Bytes per second.
        problem: Why it is dead; empty where it is not.
    """

    source: Place
    target: Place
    round_trip: float = 0.0
    bandwidth: float = 0.0
    problem: str = ""

    @classmethod
    def parse(cls, source: Place, target: Place, told: Mapping[str, Any]) -> Link:
        """From what the source's agent says."""
        try:
            return cls(
                source,
                target,
                float(told.get("roundTrip", 0)),
                float(told.get("bandwidth", 0)),
                str(told.get("problem", ""))[:200],
            )
        except (TypeError, ValueError) as error:
            return cls(source, target, problem=f"an unreadable measurement: {error}")

    @property
    def kind(self) -> str:
        """What it crosses."""
        if self.source.node == self.target.node:
            return "within a node"
        return "within a zone" if self.source.zone == self.target.zone else "between zones"

    def __str__(self) -> str:
        return f"{self.source} to {self.target}"


def dead(links: Sequence[Link]) -> str:
    """The links that carry nothing, in words, and who is at the end of all of them; empty where there are none."""
    found = [link for link in links if link.problem]
    if not found:
        return ""
    said = "; ".join(f"{link}: {link.problem}" for link in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    common = {link.source for link in found} & {link.target for link in found}
    if len(found) == 2 and len(common) == 1 and len(links) > 2:
        said += f"; {next(iter(common))} is at the end of both: look at its network first"
    return f"no connection from {said}{more}"


def slow(links: Sequence[Link], settings: Settings) -> str:
    """The links that are slower than they may be, in words; empty where there are none."""
    usual: dict[str, float] = {}
    for kind in {link.kind for link in links}:
        rates = [link.bandwidth for link in links if link.kind == kind and not link.problem]
        if len(rates) >= ENOUGH:
            usual[kind] = statistics.median(rates)
    said: list[str] = []
    for link in links:
        if link.problem:
            continue
        if settings.min_bandwidth:
            if link.bandwidth < settings.min_bandwidth:
                said.append(f"{link} carries {rate(link.bandwidth)}, less than {rate(settings.min_bandwidth)}")
        elif link.bandwidth * SLOWER < usual.get(link.kind, 0.0):
            said.append(f"{link} carries {rate(link.bandwidth)}; links {link.kind} carry {rate(usual[link.kind])}")
        if settings.max_round_trip and link.round_trip > settings.max_round_trip:
            said.append(f"{link} takes {link.round_trip * 1000:.3g} ms there and back")
    return "; ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def rate(bytes_per_second: float) -> str:
    """For people.

    >>> rate(250_000_000), rate(1_500)
    ('250 MB/s', '1.5 kB/s')
    """
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if bytes_per_second >= size:
            return f"{bytes_per_second / size:.3g} {unit}"
    return f"{bytes_per_second:.3g} B/s"


async def serve(token: str, host: str, port: int = PORT) -> asyncio.Server:
    """Answer measurements of the job's other agents until the server is closed.

    Raises:
        OSError: the port cannot be had.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, ProtocolError, asyncio.IncompleteReadError):
            hello = await asyncio.wait_for(receive(reader), CONNECT)
            known = str((hello or {}).get("token", ""))
            if hello is not None and hmac.compare_digest(known.encode(), token.encode()):
                await asyncio.wait_for(_answer(reader, writer), 2 * (CONNECT + TRANSFER))
        writer.close()

    return await asyncio.start_server(answer, host, port, limit=LIMIT)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in range(ROUND_TRIPS):
        writer.write(await reader.readexactly(1))
    while True:
        await reader.readexactly(CHUNK)
        writer.write(b"k")


async def measure(token: str, host: str, port: int = PORT) -> dict[str, Any]:
    """Measure the link to another agent.

    Returns:
        `roundTrip` in seconds and `bandwidth` in bytes per second; `problem` where nothing came through.
    """
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT)
        try:
            writer.write(encode({"type": "probe", "token": token}))
            round_trip = await _round_trip(reader, writer)
            return {"roundTrip": round_trip, "bandwidth": await _bandwidth(reader, writer)}
        finally:
            writer.close()
    except TimeoutError:
        return {"problem": f"{host}:{port} does not answer within {CONNECT:g} s"}
    except (OSError, asyncio.IncompleteReadError) as error:
        return {"problem": f"{host}:{port}: {error or type(error).__name__}"}


async def _round_trip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    times: list[float] = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        writer.write(b"p")
        await asyncio.wait_for(reader.readexactly(1), CONNECT)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _bandwidth(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """Bytes per second that were acknowledged.

    Raises:
        TimeoutError: nothing was.
    """
    chunk = bytes(CHUNK)
    began = time.perf_counter()
    last = began
    acknowledged = 0

    async def send() -> None:
        for _ in range(SIZE // CHUNK):
            writer.write(chunk)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(TRANSFER):
            while acknowledged < SIZE:
                acknowledged += CHUNK * len(await reader.read(1 << 16) or _ended())
                last = time.perf_counter()
    except TimeoutError:
        if not acknowledged:
            raise
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await sending
    return acknowledged / (last - began)


def _ended() -> bytes:
    raise ConnectionResetError("the connection ended in the middle of the measurement")
