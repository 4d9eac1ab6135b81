"""Which replicas there are: a headless DNS name asked every second, and the readiness of those that are quiet.

A failure of DNS is no news about the replicas, so the last known ones are kept. An answer that lists none is news, but
some DNS servers say it while they start; so each replica then stays for as long as its own readiness endpoint answers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from headrace.serving.balancer import Balancer, Readiness, Replica
from headrace.serving.client import Client, request
from headrace.serving.http import DRAINING_HEADER

log = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two looks."""
DNS_PATIENCE = 1.0
"""Seconds that a look waits for DNS."""
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
        client: HTTP client.
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
        client: Client,
        on_change: Callable[[], None],
        clock: Callable[[], float],
        lookup: Resolve = resolve,
        period: float = PERIOD,
    ) -> None:
        self._host = host
        self._port = port
        self._balancer = balancer
        self._client = client
        self._on_change = on_change
        self._clock = clock
        self._lookup = lookup
        self._period = period
        self._dns_failed = False
        self._asking: asyncio.Future[list[str]] | None = None

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
            if self._clock() - replica.last_success >= self._period or replica.readiness is not Readiness.READY
        ]
        for replica, found in zip(quiet, await asyncio.gather(*map(self.probe, quiet)), strict=True):
            if self._balancer.probed(replica, found):
                changed = True
                log.info(
                    "replica changed",
                    extra={"fields": {"replica": replica.address.host, "readiness": replica.readiness.name}},
                )
        if changed:
            self._on_change()

    async def _refresh(self) -> bool:
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._lookup(self._host, self._port))
        # A resolver that hangs must not hold up the probes; its answer is taken at a later look.
        await asyncio.wait({self._asking}, timeout=DNS_PATIENCE)
        if not self._asking.done():
            self._dns_trouble("no answer yet")
            return False
        asked, self._asking = self._asking, None
        try:
            addresses = asked.result()
        except OSError as error:
            self._dns_trouble(str(error))
            return False
        self._dns_failed = False
        if not addresses and self._balancer.replicas:
            known = list(self._balancer.replicas)
            alive = await asyncio.gather(*map(self.probe, known))
            addresses = [
                replica.address.host for replica, found in zip(known, alive, strict=True) if found is Readiness.READY
            ]
        came, went = self._balancer.update((address, self._port) for address in addresses)
        for replica in went:
            self._client.forget(replica.address)
        if came or went:
            fields = {
                "host": self._host,
                "came": [replica.address.host for replica in came],
                "went": [replica.address.host for replica in went],
                "now": sorted(addresses),
            }
            log.info("replicas changed", extra={"fields": fields})
        return bool(came or went)

    def _dns_trouble(self, reason: str) -> None:
        if not self._dns_failed:
            fields = {"host": self._host, "reason": reason}
            log.warning("DNS failed; the last known replicas are kept", extra={"fields": fields})
        self._dns_failed = True

    async def probe(self, replica: Replica) -> Readiness | None:
        """What a replica says of its readiness; None where it says nothing in time."""
        address = replica.address
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                answer = await self._client.send(address, request("GET", "/v2/health/ready", address, {}))
        except TimeoutError:
            return None
        except OSError:
            return Readiness.UNREADY
        if answer.status == 200:
            return Readiness.READY
        return Readiness.LEAVING if DRAINING_HEADER in answer.headers else Readiness.UNREADY
