"""The coordinator's sockets: it feeds what agents say to the state machine, and sends what comes out."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from headrace.training.agent.coordinator import Coordinator, Phase
from headrace.training.agent.members import Tell
from headrace.training.agent.protocol import LIMIT, Message, ProtocolError, encode, receive
from headrace.training.agent.settings import Settings

logger = logging.getLogger("headrace.training.agent")

TICK = 0.2
FIRST_WORD = 5.0
"""Seconds for a new connection to say who it is."""
PING = 5.0
CLOSING = 3.0
"""Seconds for agents to leave after the end."""


class Server:
    """Listens for the agents of a job.

    Args:
        settings: Of worker 0's agent.
        on_change: Called when the group's state has changed, for the report.
        host: Address to listen at; by default all.
    """

    def __init__(self, settings: Settings, on_change: Callable[[Coordinator], None], host: str | None = None) -> None:
        self._settings = settings
        self._on_change = on_change
        self._host = host
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._retired = False
        self.coordinator = Coordinator(settings, time.monotonic(), time.time())

    def retire(self) -> None:
        """Leave the agents to a successor: its pod may be there before this one is gone."""
        self._retired = True

    async def run(self) -> None:
        """Serve until the group has ended and its agents have left.

        Raises:
            OSError: the port cannot be had.
        """
        server = await asyncio.start_server(self._accept, self._host, self._settings.port, limit=LIMIT)
        async with server:
            pinged = time.monotonic()
            while self.coordinator.phase is not Phase.ENDED and not self._retired:
                await asyncio.sleep(TICK)
                self._send(self.coordinator.tick(time.monotonic()))
                if time.monotonic() - pinged >= PING:
                    pinged = time.monotonic()
                    self._send([Tell(index, {"type": "ping"}) for index in list(self._writers)])
            if self._connections and not self._retired:
                await asyncio.wait(self._connections, timeout=CLOSING)
            for task in self._connections:
                task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        index, incarnation = -1, ""
        try:
            hello = await asyncio.wait_for(receive(reader), FIRST_WORD)
            if hello is None or not self._is_ours(hello):
                return
            index, incarnation = int(hello["index"]), str(hello.get("incarnation", ""))
            before = self._writers.get(index)
            self._writers[index] = writer
            if before is not None:
                before.close()
            self._send(self.coordinator.joined(index, hello, time.monotonic()))
            while (message := await receive(reader)) is not None:
                self._send(self.coordinator.said(index, message, time.monotonic()))
        except (OSError, TimeoutError, ProtocolError, KeyError, ValueError, TypeError) as error:
            logger.info("the connection of worker %d broke: %r", index, error)
        finally:
            if self._writers.get(index) is writer:
                del self._writers[index]
                self._send(self.coordinator.disconnected(index, incarnation, time.monotonic()))
            writer.close()

    def _is_ours(self, hello: Message) -> bool:
        token = hello.get("token")
        known = isinstance(token, str) and hmac.compare_digest(token.encode(), self._settings.token.encode())
        if not known or hello.get("type") != "hello":
            logger.warning("a connection that is of no agent of this job was refused")
        return known and hello.get("type") == "hello"

    def _send(self, told: Iterable[Tell]) -> None:
        for item in told:
            writer = self._writers.get(item.index)
            if writer is None or writer.is_closing():
                continue
            with suppress(OSError):
                writer.write(encode(item.message))
                if item.close:
                    writer.close()
        self._on_change(self.coordinator)
