"""Which replica is asked: the one with the fewest requests outstanding among those that are not set aside.

A replica that refuses or loses a connection, or stays silent while it should have answered, is set aside (ejected):
for `baseEjectionTime` the first time, twice as long each further time in a row, at most `maxEjectionTime`. So is one
that answers `consecutive5xx` requests in a row with a server error, unless `maxEjectionPercent` of the replicas are set
aside already; one may always be. An answer clears its record. A probe that finds it ready brings it back early after a
lost connection, but not after silence or errors: a server whose health endpoint answers may still be stuck where it
computes. A replica whose probes fail is not asked at all.

When none is good, the one whose time ends first is asked, since a wrong guess costs less than not asking.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum

from headrace.api.inferenceservice import OutlierDetection
from headrace.api.meta import parse_duration
from headrace.serving.client import Address


class Readiness(IntEnum):
    """What a replica's readiness endpoint says, in order of preference."""

    READY = 0
    LEAVING = 1
    """It drains: it answers for a while, and others are better."""
    UNREADY = 2


@dataclass(slots=True, eq=False)
class Replica:
    """One address of the predictor.

    Attributes:
        address: Where it is, with the idle connections to it.
        outstanding: Requests sent and not yet answered.
        failures: Times that it was set aside since the last success.
        errors: Server errors since the last success.
        ejected_until: Clock time until which it is set aside.
        last_success: Clock time of the last answer or successful probe.
        silent: Whether it was set aside for silence or errors, of which a probe says nothing.
        readiness: What probes find; a new replica is taken to be ready, as its DNS record says.
        missed_probes: Probes without an answer since the last one with.
        used: Turn of its last use.
    """

    address: Address
    outstanding: int = 0
    failures: int = 0
    errors: int = 0
    ejected_until: float = 0.0
    last_success: float = -1.0
    silent: bool = False
    readiness: Readiness = Readiness.READY
    missed_probes: int = 0
    used: int = 0

    def answer_done(self, answer: object) -> None:
        """One request less is outstanding."""
        self.outstanding -= 1


class Balancer:
    """The replicas and the choice among them. Not thread-safe: it lives on one event loop.

    Args:
        clock: Monotonic seconds.
        outliers: When a replica is set aside, and for how long.
    """

    def __init__(self, clock: Callable[[], float], outliers: OutlierDetection | None = None) -> None:
        self._clock = clock
        self._outliers = outliers or OutlierDetection()
        self._base = parse_duration(self._outliers.base_ejection_time).total_seconds()
        self._most = parse_duration(self._outliers.max_ejection_time).total_seconds()
        self._replicas: dict[tuple[str, int], Replica] = {}
        self._turn = 0

    @property
    def replicas(self) -> Collection[Replica]:
        return self._replicas.values()

    def update(self, addresses: Iterable[tuple[str, int]]) -> tuple[list[Replica], list[Replica]]:
        """Take the list of hosts and ports; returns the replicas that came and those that went.

        What is known of a replica that stays is kept.
        """
        wanted = set(addresses)
        came = [Replica(Address(host, port)) for host, port in sorted(wanted - self._replicas.keys())]
        went = [self._replicas.pop(key) for key in self._replicas.keys() - wanted]
        self._replicas.update({(replica.address.host, replica.address.port): replica for replica in came})
        return came, went

    def pick(self, tried: Collection[Replica] = ()) -> Replica | None:
        """The replica to ask next, other than those `tried`; None where there is no other."""
        now = self._clock()
        candidates = [replica for replica in self._replicas.values() if replica not in tried]
        if not candidates:
            return None
        good = [
            replica for replica in candidates if replica.ejected_until <= now and replica.readiness is Readiness.READY
        ]
        if good:
            # The turn breaks ties, so that an idle pair shares sequential requests evenly.
            chosen = min(good, key=lambda replica: (replica.outstanding, replica.used))
        else:
            chosen = min(candidates, key=lambda replica: (replica.readiness, replica.ejected_until, replica.used))
        self._turn += 1
        chosen.used = self._turn
        return chosen

    def answered(self, replica: Replica) -> None:
        """It answered a request."""
        replica.failures = 0
        replica.errors = 0
        replica.ejected_until = 0.0
        replica.silent = False
        replica.missed_probes = 0
        replica.last_success = self._clock()

    def failed(self, replica: Replica, *, silent: bool) -> float:
        """It lost the connection, or did not answer in time; returns the seconds for which it is set aside."""
        now = self._clock()
        if replica.ejected_until > now:
            # Requests that fail together are one failure.
            return replica.ejected_until - now
        seconds = min(self._base * 2.0**replica.failures, self._most)
        replica.failures = min(replica.failures + 1, 16)
        replica.ejected_until = now + seconds
        replica.silent = silent
        return seconds

    def erred(self, replica: Replica) -> float:
        """It answered with a server error; returns the seconds for which it is set aside now, 0 where it is not."""
        replica.errors += 1
        now = self._clock()
        if replica.errors < self._outliers.consecutive5xx or replica.ejected_until > now:
            return 0.0
        aside = sum(other.ejected_until > now for other in self._replicas.values())
        if aside and (aside + 1) * 100 > self._outliers.max_ejection_percent * len(self._replicas):
            return 0.0
        replica.errors = 0
        return self.failed(replica, silent=True)

    def probed(self, replica: Replica, found: Readiness | None) -> bool:
        """What its readiness endpoint said, None where it said nothing; returns whether that is news.

        One unanswered probe may be a busy server; the second in a row is not taken for that.
        """
        before = replica.readiness
        if found is None:
            replica.missed_probes += 1
            if replica.missed_probes >= 2:
                replica.readiness = Readiness.UNREADY
        else:
            replica.missed_probes = 0
            replica.readiness = found
        if found is Readiness.READY:
            replica.last_success = self._clock()
            if not replica.silent:
                replica.failures = 0
                replica.ejected_until = 0.0
        return replica.readiness is not before

    @property
    def any_alive(self) -> bool:
        """Whether there is a replica that probes find to answer."""
        return any(replica.readiness is not Readiness.UNREADY for replica in self._replicas.values())
