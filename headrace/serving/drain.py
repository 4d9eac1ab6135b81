"""A server's life: listen, work, and on SIGTERM leave without losing a request.

Leaving takes three steps. First it says that it is not ready and goes on answering for the drain period, while
endpoints and DNS records are taken back everywhere; every answer asks its client to close the connection. Then it
stops listening and waits for what is in flight. Then it exits with 0.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.serving.http import ProtocolServer
from headrace.serving.server import HttpServer

if TYPE_CHECKING:
    from headrace.serving.grpc.server import GrpcServer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a server's leaving.

    Attributes:
        drain: Time during which it still listens.
        grace: Time for requests in flight after that.
    """

    drain: float = 5.0
    grace: float = 20.0


class Leaving:
    """Whether, and since when, the process is on its way out."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    @property
    def begun(self) -> bool:
        return self._asked.is_set()

    def begin(self) -> None:
        """Ask to leave; a second time changes nothing."""
        if not self.begun:
            log.info("draining")
            self._asked.set()

    async def wait(self) -> None:
        """Until somebody asks."""
        await self._asked.wait()

    def on_signals(self) -> None:
        """Leave on SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.begin)


async def serve(
    handler: ProtocolServer,
    host: str | None,
    port: int,
    leaving: Leaving,
    times: Times,
    tasks: Sequence[Coroutine[Any, Any, None]] = (),
    on_listening: Callable[[int], None] = lambda port: None,
    grpc_port: int | None = None,
    on_grpc: Callable[[int], None] = lambda port: None,
) -> None:
    """Listen until asked to leave, with background tasks beside; returns when all is answered.

    A background task that fails ends the server with its exception. One that returns is done.

    Args:
        handler: Answers requests; a request whose client has gone is cancelled.
        host: Address to listen at, None for all.
        port: Port of HTTP, 0 for any; `on_listening` is told which.
        leaving: Whether the process is on its way out.
        times: Of its leaving.
        tasks: What runs beside the requests.
        on_listening: Told the port of HTTP.
        grpc_port: Port of gRPC, 0 for any, None for no gRPC; `on_grpc` is told which.
        on_grpc: Told the port of gRPC.
    """
    loop = asyncio.get_running_loop()
    server = HttpServer(handler, loop)
    running = [asyncio.ensure_future(task) for task in (server.run(), *tasks)]
    listener: asyncio.Server | None = None
    grpc: GrpcServer | None = None
    try:
        listener = await loop.create_server(server.connection, host, port, backlog=1024)
        bound = int(listener.sockets[0].getsockname()[1])
        if grpc_port is not None:
            grpc = _grpc(handler)
            grpc_port = await grpc.start(host, grpc_port)
        log.info("listening", extra={"fields": {"port": bound, "grpc_port": grpc_port}})
        if grpc_port is not None:
            on_grpc(grpc_port)
        on_listening(bound)
        await _until(leaving, running)
        await asyncio.sleep(times.drain)
    finally:
        if listener is not None:
            listener.close()
        ends = [server.shutdown(times.grace)]
        if grpc is not None:
            ends.append(grpc.stop(times.grace))
        await asyncio.gather(*ends)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    log.info("left")


def _grpc(handler: ProtocolServer) -> GrpcServer:
    # Imported where it is used: gRPC costs half a second and 20 MB at the start.
    from headrace.serving.grpc.server import GrpcServer

    return GrpcServer(handler)


async def _until(leaving: Leaving, tasks: Sequence[asyncio.Future[None]]) -> None:
    wait = asyncio.ensure_future(leaving.wait())
    pending: set[asyncio.Future[None]] = {wait, *tasks}
    try:
        while not wait.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        wait.cancel()
