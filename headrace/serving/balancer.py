"""Which replica is asked: the one with the fewest requests outstanding among those that are not set aside.

A replica that refuses or loses a connection, or stays silent while it should have answered, is set aside (ejected):
for one second the first time, twice as long each further time in a row, at most half a minute. An answer clears its
record. A probe that finds it ready brings it back early after a lost connection, but not after silence: a server whose
health endpoint answers may still be stuck where it computes. A replica whose probes fail is not asked at all.

When none is good, the one whose time ends first is asked, since a wrong guess costs less than not asking.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

BASE_EJECTION = 1.0
"""Seconds for the first failure."""
MAX_EJECTION = 30.0
"""Most seconds, however many failures."""


@dataclass(slots=True, eq=False)
class Replica:
    """One address of the predictor.

    Attributes:
        outstanding: Requests sent and not yet answered.
        failures: Failures since the last success.
        ejected_until: Clock time until which it is set aside.
        last_success: Clock time of the last answer or successful probe.
        silent: Whether its last failure was silence.
        ready: Whether probes find it ready; a new replica is taken to be, as its DNS record says.
        missed_probes: Probes without an answer since the last one with.
        used: Turn of its last use.
    """

    address: str
    url: str
    outstanding: int = 0
    failures: int = 0
    ejected_until: float = 0.0
    last_success: float = -1.0
    silent: bool = False
    ready: bool = True
    missed_probes: int = 0
    used: int = 0


class Balancer:
    """The replicas and the choice among them. Not thread-safe: it lives on one event loop.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._replicas: dict[str, Replica] = {}
        self._turn = 0

    @property
    def replicas(self) -> Collection[Replica]:
        return self._replicas.values()

    def update(self, addresses: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """Take the list of replicas as (address, base URL); returns the addresses that came and that went.

        What is known of a replica that stays is kept.
        """
        wanted = dict(addresses)
        came = [address for address in wanted if address not in self._replicas]
        went = [address for address in self._replicas if address not in wanted]
        for address in went:
            del self._replicas[address]
        for address in came:
            self._replicas[address] = Replica(address, wanted[address])
        return came, went

    def pick(self, tried: Collection[Replica] = ()) -> Replica | None:
        """The replica to ask next, other than those `tried`; None where there is no other."""
        now = self._clock()
        candidates = [replica for replica in self._replicas.values() if replica not in tried]
        if not candidates:
            return None
        good = [replica for replica in candidates if replica.ejected_until <= now and replica.ready]
        if good:
            # The turn breaks ties, so that an idle pair shares sequential requests evenly.
            chosen = min(good, key=lambda replica: (replica.outstanding, replica.used))
        else:
            chosen = min(candidates, key=lambda replica: (not replica.ready, replica.ejected_until, replica.used))
        self._turn += 1
        chosen.used = self._turn
        return chosen

    def answered(self, replica: Replica) -> None:
        """It answered a request."""
        replica.failures = 0
        replica.ejected_until = 0.0
        replica.silent = False
        replica.ready = True
        replica.missed_probes = 0
        replica.last_success = self._clock()

    def failed(self, replica: Replica, *, silent: bool) -> float:
        """It lost the connection, or did not answer in time; returns the seconds for which it is set aside."""
        now = self._clock()
        if replica.ejected_until > now:
            # Requests that fail together are one failure.
            return replica.ejected_until - now
        seconds = min(BASE_EJECTION * 2.0**replica.failures, MAX_EJECTION)
        replica.failures = min(replica.failures + 1, 16)
        replica.ejected_until = now + seconds
        replica.silent = silent
        return seconds

    def probed(self, replica: Replica, ready: bool | None) -> bool:
        """What its readiness endpoint said, None where it said nothing; returns whether its readiness changed.

        One unanswered probe may be a busy server; the second in a row is not taken for that.
        """
        before = replica.ready
        if ready is None:
            replica.missed_probes += 1
            replica.ready = replica.ready and replica.missed_probes < 2
        else:
            replica.missed_probes = 0
            replica.ready = ready
        if ready:
            replica.last_success = self._clock()
            if not replica.silent:
                replica.failures = 0
                replica.ejected_until = 0.0
        return replica.ready is not before

    @property
    def any_ready(self) -> bool:
        """Whether there is a replica that probes do not find unready."""
        return any(replica.ready for replica in self._replicas.values())
