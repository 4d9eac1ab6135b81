"""/livez, /readyz and /metrics.

Liveness asks whether a restart would help: the event loop answers (by answering at all), the election is at work, and
in the process that leads the API server has lately said something about every watched type. That the server is down
is no reason: a leader that cannot reach it loses the Lease and ends by itself, and a standby waits.

Readiness asks whether the process does its duty: as the leader with its caches filled, or as a standby that sees the
Lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Problems = Callable[[], Mapping[str, str]]
"""What is wrong now, by the name of the check; empty when all is well."""


@dataclass(slots=True)
class Health:
    """What the endpoints answer; the application fills it in as it starts.

    Attributes:
        alive: Problems that a restart may solve.
        ready: Problems that keep the process from its duty.
    """

    alive: Problems = dict
    ready: Problems = lambda: {"start": "the operator is starting"}


class HealthServer:
    """Serves Health and the metrics of a registry, on two ports."""

    def __init__(self, health: Health, registry: CollectorRegistry, host: str, health_port: int, metrics_port: int):
        self._health = health
        self._registry = registry
        self._host = host
        self._ports = (health_port, metrics_port)
        self._runners: list[web.AppRunner] = []
        self.health_port = 0
        """The port in use, once started."""
        self.metrics_port = 0
        """The port in use, once started."""

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: A port is taken.
        """
        self.health_port = await self._serve(
            self._ports[0],
            [
                web.get("/livez", lambda _: self._answer(self._health.alive())),
                web.get("/readyz", lambda _: self._answer(self._health.ready())),
            ],
        )
        self.metrics_port = await self._serve(self._ports[1], [web.get("/metrics", self._metrics)])

    async def stop(self) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()

    async def _serve(self, port: int, routes: list[web.RouteDef]) -> int:
        application = web.Application()
        application.add_routes(routes)
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, self._host, port).start()
        address: tuple[str, int] = runner.addresses[0]
        return address[1]

    async def _answer(self, problems: Mapping[str, str]) -> web.Response:
        if not problems:
            return web.Response(text="ok\n")
        text = "".join(f"{name}: {problem}\n" for name, problem in problems.items())
        return web.Response(status=503, text=text)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


def silent(silence: Mapping[str, float], limit: float) -> dict[str, str]:
    """Problems of watches that have been silent for longer than `limit` seconds."""
    return {
        f"watch of {name}": f"the API server has said nothing for {seconds:.0f} s"
        for name, seconds in silence.items()
        if seconds > limit
    }


def stalled(name: str, last: float, limit: float) -> dict[str, str]:
    """A problem when something last happened (by time.monotonic) more than `limit` seconds ago."""
    age = time.monotonic() - last
    return {name: f"nothing for {age:.0f} s"} if age > limit else {}
