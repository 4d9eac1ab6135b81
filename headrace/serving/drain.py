"""A server's life: listen, work, and on SIGTERM leave without losing a request.

Leaving takes three steps. First it says that it is not ready and goes on answering for the drain period, while
endpoints and DNS records are taken back everywhere; every answer asks its client to close the connection. Then it
stops listening and waits for what is in flight. Then it exits with 0.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from headrace.serving.http import IDLE_TIMEOUT, MAX_BODY

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


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def serve(
    handler: Handler,
    host: str | None,
    port: int,
    leaving: Leaving,
    times: Times,
    tasks: Sequence[Coroutine[Any, Any, None]] = (),
    on_listening: Callable[[int], None] = lambda port: None,
    max_body: int = MAX_BODY,
) -> None:
    """Listen until asked to leave, with background tasks beside; returns when all is answered.

    A background task that fails ends the server with its exception. One that returns is done.

    Args:
        handler: Answers one request; cancelled when its client has gone.
        host: Address to listen at, None for all.
        port: Port, 0 for any; `on_listening` is told which.
    """

    def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=max_body
        )

    server = web.Server(
        handler,
        request_factory=make_request,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=IDLE_TIMEOUT,
    )
    runner = web.ServerRunner(server, shutdown_timeout=times.grace)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=1024)
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        await site.start()
        bound = int(runner.addresses[0][1])
        log.info("listening", extra={"fields": {"port": bound}})
        on_listening(bound)
        await _until(leaving, running)
        await asyncio.sleep(times.drain)
    finally:
        await runner.cleanup()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    log.info("left")


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
