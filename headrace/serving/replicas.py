"""Which replicas there are: a headless DNS name asked every second, and the readiness of those that are quiet.

A failure of DNS is no news about the replicas, so the last known ones are kept. An answer that lists none is news, but
some DNS servers say it while they start; so each replica then stays for as long as its own readiness endpoint answers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

import aiohttp

from headrace.serving.balancer import Balancer, Replica

log = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two looks."""
PROBE_TIMEOUT = 1.0
"""Seconds for a readiness probe."""

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Addresses of a host: an empty list where it has none, OSError where that cannot be known."""

_NO_ADDRESS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


async def resolve(host: str, port: int) -> list[str]:
    """Addresses of one family (IPv4 where there is any), since a dual-stack pod has one of each."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NO_ADDRESS:
            return []
        raise
    by_family: dict[int, set[str]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, set()).add(str(address[0]))
    return sorted(by_family.get(socket.AF_INET) or by_family.get(socket.AF_INET6) or ())


class ReplicaWatch:
    """Keeps a balancer's list of replicas and their readiness.

    Args:
        host: Headless DNS name.
        port: Port of the replicas.
        balancer: Whose list it is.
        session: HTTP client.
        on_change: Told when a replica comes, goes, or changes its readiness.
        clock: The balancer's clock.
        lookup: DNS.
        period: Seconds between two looks.
    """

    def __init__(
        self,
        host: str,
        port: int,
        balancer: Balancer,
        session: aiohttp.ClientSession,
        on_change: Callable[[], None],
        clock: Callable[[], float],
        lookup: Resolve = resolve,
        period: float = PERIOD,
    ) -> None:
        self._host = host
        self._port = port
        self._balancer = balancer
        self._session = session
        self._on_change = on_change
        self._clock = clock
        self._lookup = lookup
        self._period = period
        self._dns_failed = False

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._period)

    async def look(self) -> None:
        """Ask DNS once, then the replicas that nobody has heard of for a period."""
        changed = await self._refresh()
        quiet = [
            replica
            for replica in self._balancer.replicas
            if self._clock() - replica.last_success >= self._period or not replica.ready
        ]
        for replica, ready in zip(quiet, await asyncio.gather(*map(self.probe, quiet)), strict=True):
            if self._balancer.probed(replica, ready):
                changed = True
                log.info(
                    "replica ready" if replica.ready else "replica not ready",
                    extra={"fields": {"replica": replica.address}},
                )
        if changed:
            self._on_change()

    async def _refresh(self) -> bool:
        try:
            addresses = await self._lookup(self._host, self._port)
        except OSError as error:
            if not self._dns_failed:
                log.warning(
                    "DNS failed; the last known replicas are kept",
                    extra={"fields": {"host": self._host, "reason": str(error)}},
                )
            self._dns_failed = True
            return False
        self._dns_failed = False
        if not addresses and self._balancer.replicas:
            known = list(self._balancer.replicas)
            alive = await asyncio.gather(*map(self.probe, known))
            addresses = [replica.address for replica, ready in zip(known, alive, strict=True) if ready]
        came, went = self._balancer.update((address, self._url(address)) for address in addresses)
        if came or went:
            log.info(
                "replicas changed",
                extra={"fields": {"host": self._host, "came": came, "went": went, "now": sorted(addresses)}},
            )
        return bool(came or went)

    def _url(self, address: str) -> str:
        return f"http://[{address}]:{self._port}" if ":" in address else f"http://{address}:{self._port}"

    async def probe(self, replica: Replica) -> bool | None:
        """Whether a replica says that it is ready; None where it says nothing in time."""
        try:
            async with (
                asyncio.timeout(PROBE_TIMEOUT),
                self._session.get(f"{replica.url}/v2/health/ready", allow_redirects=False) as response,
            ):
                return response.status == 200
        except TimeoutError:
            return None
        except (aiohttp.ClientError, OSError):
            return False
