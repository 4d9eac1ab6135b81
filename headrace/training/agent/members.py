"""The agents of a group as worker 0 knows them, and the ring that their ranks make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.training.agent.preflight import Place
from headrace.training.agent.protocol import Message


@dataclass(slots=True)
class Member:
    """One agent.

    Attributes:
        index: Number of its worker.
        incarnation: Its pod.
        address: Where its rank 0 process can be reached.
        zone: Zone of its node.
        node: Its node.
        state: idle (nothing runs), running, failed (its processes ended badly), done (they ended well).
        connected: Its connection stands.
        lost_at: When the connection broke.
        leaving: Its pod is being ended.
        heard: When it last said something.
        beats: Of its processes, as last told.
    """

    index: int
    incarnation: str
    address: str
    zone: str
    node: str
    state: str = "idle"
    connected: bool = True
    lost_at: float = 0.0
    leaving: bool = False
    heard: float = 0.0
    beats: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tell:
    """A message for the agent of one worker; the connection is closed after it where `close` says so."""

    index: int
    message: Message
    close: bool = False


def ring(members: Iterable[Member]) -> list[Member]:
    """Members in the order of their ranks: neighbours share a node, then a zone, so that a ring crosses each slow
    boundary once. Worker 0 stays the first.
    """
    every = list(members)
    first = min(every, key=lambda member: member.index)

    def place(member: Member) -> tuple[bool, str, bool, str, int]:
        return (member.zone != first.zone, member.zone, member.node != first.node, member.node, member.index)

    return sorted(every, key=place)


def links(members: Sequence[Member]) -> list[tuple[Member, Member]]:
    """Each member with the one after it, the last one with the first."""
    return list(zip(members, [*members[1:], *members[:1]], strict=True))


def place_of(member: Member) -> Place:
    return Place(member.index, member.node, member.zone)
