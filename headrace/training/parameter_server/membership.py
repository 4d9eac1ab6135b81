"""Who takes part, how far each has come, and who must wait for whom: the three kinds of consistency as plain rules.

- Asynchronous: nobody waits (Dean et al. 2012, "Large Scale Distributed Deep Networks").
- StaleSynchronous: a worker that has finished c clocks goes on when every other has finished at least c - s (Ho et al.
  2013, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server"). A clock is one push.
- Synchronous: all wait until a round is complete, which takes the pushes of all workers but the slowest b (Chen et al.
  2016, "Revisiting Distributed Synchronous SGD").

A worker whose connection broke, or that has not been heard of for a while, does not hold the others up. A
round of Synchronous first waits for every worker to appear: a worker that nobody has seen is late, one that was seen
and went away is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.api.trainingjob import ParameterServer

SILENCE = 20.0
"""Seconds without a sign of life (heartbeats come every 2 s) after which a worker no longer counts."""
RETURN = 15.0
"""Seconds after a server's restart in which a Synchronous round waits for the workers that were there before."""


@dataclass(slots=True)
class Member:
    """One worker as a server sees it.

    Attributes:
        clock: Pushes it has made in this run, or where it joined.
        step: Steps it has taken of its own work, so that a successor knows where to go on.
        incarnation: Of the process; a successor's is another one.
        sequence: Number of its last push, so that one that is sent twice counts once.
        connected: Its connection stands.
        awaited: Rounds of Synchronous wait for it; not for one that came back until it has sent something.
        seen: When it was last heard of, in seconds.
        finished: It has taken all its steps.
    """

    clock: int = 0
    step: int = 0
    incarnation: str = ""
    sequence: int = -1
    connected: bool = False
    awaited: bool = True
    seen: float = 0.0
    finished: bool = False


class Membership:
    """The workers of a run. Not thread-safe: the shard's lock guards it.

    Args:
        workers: Workers of the run.
        settings: Consistency, staleness, backup workers.
    """

    def __init__(self, workers: int, settings: ParameterServer) -> None:
        self.workers = workers
        self.settings = settings
        self.members: dict[int, Member] = {}
        self._absent: set[int] = set()
        self._restored = 0.0

    def join(self, rank: int, incarnation: str, clock: int | None, now: float) -> Member:
        """A worker connects.

        Args:
            rank: Its rank.
            incarnation: Of its process.
            clock: Where it stands, when it comes back; None for a process that has just begun, which starts where the
                slowest of the others is.
            now: Seconds.
        """
        floor = self.floor(now, but=rank)
        known = rank in self.members
        member = self.members.setdefault(rank, Member())
        if clock is None:
            member.clock = floor if floor is not None else member.clock
        else:
            member.clock = clock
        if incarnation != member.incarnation:
            member.incarnation, member.sequence = incarnation, -1
            member.awaited = self.settings.consistency != "Synchronous" or not known or rank in self._absent
            member.finished = False
        member.connected, member.seen = True, now
        self._absent.discard(rank)
        return member

    def left(self, rank: int, incarnation: str) -> None:
        """A worker's connection is gone; of no effect when a successor has taken over."""
        member = self.members.get(rank)
        if member is not None and member.incarnation == incarnation:
            member.connected = False

    def finish(self, rank: int) -> None:
        """A worker has taken all its steps."""
        self.members.setdefault(rank, Member()).finished = True

    def counts(self, member: Member, now: float) -> bool:
        """Whether others wait for this worker."""
        return member.connected and member.awaited and not member.finished and now - member.seen <= SILENCE

    def floor(self, now: float, but: int | None = None) -> int | None:
        """Clock of the slowest worker that counts; None where there is none.

        Args:
            now: Seconds.
            but: A worker that is left out.
        """
        clocks = [member.clock for rank, member in self.members.items() if rank != but and self.counts(member, now)]
        return min(clocks, default=None)

    def may_go_on(self, rank: int, now: float) -> bool:
        """Whether a worker may have weights for its next clock (StaleSynchronous)."""
        floor = self.floor(now)
        bound = self.settings.staleness
        return floor is None or bound is None or self.members[rank].clock - floor <= bound

    def round_size(self, now: float) -> int:
        """Pushes that complete a round (Synchronous): all workers' but the backup's, or all that are left."""
        # Who never came is waited for; who came and went is not.
        expected = self._absent if now - self._restored < RETURN else ()
        gone = sum(
            1
            for rank, member in self.members.items()
            if not self.counts(member, now) and (member.finished or rank not in expected)
        )
        return max(1, min(self.workers - self.settings.backup_workers, self.workers - gone))

    @property
    def all_finished(self) -> bool:
        """Every worker of the run has taken all its steps."""
        return sum(member.finished for member in self.members.values()) >= self.workers

    def facts(self, now: float) -> list[dict[str, Any]]:
        """The workers as JSON, for a checkpoint and for the status."""
        return [
            {
                "rank": rank,
                "clock": member.clock,
                "step": member.step,
                "incarnation": member.incarnation,
                "sequence": member.sequence,
                "finished": member.finished,
                "connected": self.counts(member, now),
            }
            for rank, member in sorted(self.members.items())
        ]

    def restore(self, facts: Sequence[Mapping[str, Any]], now: float) -> None:
        """Take over from `facts`; nobody is connected yet."""
        self.members = {
            int(item["rank"]): Member(
                clock=int(item["clock"]),
                step=int(item["step"]),
                incarnation=str(item["incarnation"]),
                sequence=int(item["sequence"]),
                finished=bool(item["finished"]),
            )
            for item in facts
        }
        self._absent, self._restored = set(self.members), now
