"""Which gangs may start now: a pure function of nodes, what runs on them, and the gangs in the queue.

Gangs stand in the order of priority; among equals it is the turn of the namespace that has the least of the cluster
(its dominant share, Ghodsi et al. 2011: of the resource of which it has most, by its weight), and within it of the
oldest. One pass goes through them with what is free on the nodes: a gang that
fits as a whole is admitted and takes its room; the first that does not fit, though the cluster could hold it, keeps its
place. For it the room is set aside on nodes that could hold it once the gangs there have ended, and whoever stands
behind it is admitted only into what that leaves (backfill). So a big gang is not overtaken for ever by small ones, and
nobody waits for room that it could not use. A gang that even empty nodes could not hold keeps nobody waiting.

A gang that has to wait may push out gangs of lower priority: those of the lowest priority and the youngest first, and
no more of them than it takes.

What the scheduler will do is estimated: requests, node selectors, taints, and the balance over zones count; affinities
that people add do not. Where the estimate was too good, the group lets go after its timeout (`waiting.group_is_late`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from controllers.runtime.objects import Manifest
from controllers.trainingjob.builders import ZONE
from controllers.trainingjob.observed import Admission
from controllers.trainingjob.scheduling import is_open, resource_reason
from headrace.api.meta import parse_quantity

BACKFILL = 100
"""Gangs behind the one that waits for room which are looked at in one pass."""
PLACES = 4
"""Nodes that a message names."""

Amounts = Mapping[str, float]
"""Resource name to amount, in base units (cores, bytes, devices)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What one worker of a gang asks of its node.

    Attributes:
        requests: Amounts by resource, sorted by name; `pods` is one of them.
        selector: Labels that the node must have.
        tolerations: Tolerations as they stand in the pod.
    """

    requests: tuple[tuple[str, float], ...]
    selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[tuple[tuple[str, str], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Gang:
    """A job in the eyes of the queue.

    Attributes:
        name: For messages and as a key.
        uid: Uid of the job.
        priority: Value of its PriorityClass.
        created: When the job was made, RFC 3339 text.
        workers: Number of pods.
        shape: What each asks for.
        spread: They are to be balanced over zones.
        admitted: Its pods exist or are being made.
        leaving: They are on their way out.
        preempts: It may push out gangs of lower priority.
        namespace: Whose it is.
        weight: Of that namespace: with 2 it is owed twice as much as one with 1.
    """

    name: str
    uid: str
    priority: int
    created: str
    workers: int
    shape: Shape
    spread: bool = False
    admitted: bool = False
    leaving: bool = False
    preempts: bool = True
    namespace: str = ""
    weight: float = 1.0

    @property
    def rank(self) -> tuple[int, str, str]:
        """Place in the queue: smaller comes first."""
        return (-self.priority, self.created, self.name)


@dataclass(slots=True)
class Room:
    """A node and what is left of it.

    Attributes:
        name: Name of the node.
        node: The manifest.
        total: Allocatable less what others than gangs use: what is free once all gangs have ended.
        free: What is free now.
        aside: What is set aside for the gang that waits, and what gangs behind it use: so much must stay.
    """

    name: str
    node: Manifest
    total: dict[str, float]
    free: dict[str, float]
    aside: dict[str, float] = field(default_factory=dict)

    @property
    def zone(self) -> str:
        """Its zone; empty without the label."""
        zone: str = (self.node["metadata"].get("labels") or {}).get(ZONE, "")
        return zone

    def takes(self, shape: Shape) -> bool:
        """Whether the shape may run here, whatever is free."""
        labels = self.node["metadata"].get("labels") or {}
        if any(labels.get(name) != value for name, value in shape.selector):
            return False
        return is_open(self.node, {"spec": {"tolerations": [dict(item) for item in shape.tolerations]}})


Usage = Mapping[str, Mapping[str, Amounts]]
"""Requests of bound pods by node and by the uid of their job; the uid is empty for pods of anybody else."""
Placement = dict[int, int]
"""Index of a room to a number of workers."""


def rooms(nodes: Iterable[Manifest], usage: Usage) -> list[Room]:
    """Nodes that are Ready, with what is left of each."""
    found: list[Room] = []
    for node in nodes:
        conditions = node.get("status", {}).get("conditions") or ()
        if not any(item["type"] == "Ready" and item["status"] == "True" for item in conditions):
            continue
        name = node["metadata"]["name"]
        offered = allocatable(node)
        used = usage.get(name, {})
        total = {key: amount - used.get("", {}).get(key, 0.0) for key, amount in offered.items()}
        free = {key: amount - sum(of.get(key, 0.0) for uid, of in used.items() if uid) for key, amount in total.items()}
        found.append(Room(name, node, total, free))
    return sorted(found, key=lambda room: room.name)


def allocatable(node: Manifest) -> dict[str, float]:
    """What a node offers, in base units."""
    return amounts(node.get("status", {}).get("allocatable") or {})


class Pass:
    """One pass over the queue."""

    def __init__(self, nodes: Iterable[Manifest], usage: Usage, gangs: Iterable[Gang]) -> None:
        self.rooms = rooms(nodes, usage)
        self.usage = usage
        self.gangs = sorted(gangs, key=lambda gang: gang.rank)
        self._open: dict[Shape, list[int]] = {}
        self._failed: set[tuple[Shape, int, bool]] = set()
        self._aside = False
        self._capacity: dict[str, float] = {}
        for room in self.rooms:
            _add(self._capacity, room.total, 1)
        self._had: dict[str, dict[str, float]] = {}  # by namespace, of all gangs that are admitted
        self._taken: dict[tuple[int, str], int] = {}  # workers of a gang that are to come to a room

    def decide(self) -> dict[str, Admission]:
        """What the queue says of every gang, by name."""
        found: dict[str, Admission] = {}
        for gang in self.gangs:
            if gang.admitted:
                # One that leaves is told nothing, so that it does not come back before the next pass.
                found[gang.name] = Admission(admitted=not gang.leaving)
                self._hold_the_rest(gang)
                if not gang.leaving:
                    self._count(gang)
        behind = 0
        for gang in self._in_turn():
            if self._aside:
                behind += 1
                placed = self._place(gang, now=True) if behind <= BACKFILL else None
            else:
                placed = self._place(gang, now=True)
            if placed is not None:
                self._take(gang, placed)
                self._count(gang)
                found[gang.name] = Admission(admitted=True)
            elif self._aside:
                found[gang.name] = self._behind()
            else:
                found |= self._first(gang)
        return found

    def _in_turn(self) -> Iterator[Gang]:
        """The gangs that wait, one after another; each admission changes whose turn it is."""
        by_priority: dict[int, dict[str, deque[Gang]]] = {}
        for gang in self.gangs:  # oldest first
            if not gang.admitted:
                by_priority.setdefault(gang.priority, {}).setdefault(gang.namespace, deque()).append(gang)
        for priority in sorted(by_priority, reverse=True):
            queues = by_priority[priority]
            while queues:
                namespace = min(queues, key=lambda name: (self._share(queues[name][0]), queues[name][0].rank))
                yield queues[namespace].popleft()
                if not queues[namespace]:
                    del queues[namespace]

    def _share(self, gang: Gang) -> float:
        """Dominant share of a gang's namespace: its fraction of the resource of which it has most, by weight."""
        had = self._had.get(gang.namespace, {})
        shares = [amount / self._capacity[name] for name, amount in had.items() if self._capacity.get(name, 0.0) > 0]
        return round(max(shares, default=0.0) / gang.weight, 9)

    def _count(self, gang: Gang) -> None:
        """It has its whole group now. Places for pods are no resource that anybody is short of."""
        asked = {name: amount for name, amount in gang.shape.requests if name != "pods"}
        _add(self._had.setdefault(gang.namespace, {}), asked, gang.workers)

    def _first(self, gang: Gang) -> dict[str, Admission]:
        """A gang that does not fit now and has nobody before it."""
        whole = self._place(gang, now=False)
        if whole is None:
            return {gang.name: self._too_big(gang)}
        victims, room = self._victims(gang)
        self._set_aside(gang, room or whole)
        self._failed.clear()
        said = {gang.name: self._waits(gang, victims)}
        for victim in victims:
            if not victim.leaving:
                said[victim.name] = Admission(admitted=False, preempted_by=f"TrainingJob {gang.name}")
        return said

    def _victims(self, gang: Gang) -> tuple[list[Gang], Placement | None]:
        """Gangs of lower priority that make room for this one, and where that is; none where they could not."""
        lower = [item for item in self.gangs if item.admitted and (item.leaving or item.priority < gang.priority)]
        order = sorted(lower, key=lambda item: (not item.leaving, item.priority, _reversed(item.created)))
        if not gang.preempts:
            order = [item for item in order if item.leaving]
        saved = [dict(room.free) for room in self.rooms]
        chosen: list[Gang] = []
        placed: Placement | None = None
        for victim in order:
            self._give_back(victim, 1)
            chosen.append(victim)
            placed = self._place(gang, now=True, fresh=True)
            if placed is not None:
                break
        if placed is not None:
            for victim in [item for item in chosen if not item.leaving][:-1]:
                self._give_back(victim, -1)
                without = self._place(gang, now=True, fresh=True)
                if without is None:
                    self._give_back(victim, 1)
                else:
                    placed = without
                    chosen.remove(victim)
        for room, free in zip(self.rooms, saved, strict=True):
            room.free = free
        return (chosen, placed) if placed is not None else ([], None)

    def _give_back(self, gang: Gang, sign: int) -> None:
        for room in self.rooms:
            for name, amount in self.usage.get(room.name, {}).get(gang.uid, {}).items():
                if name in room.free:
                    room.free[name] += sign * amount

    def _hold_the_rest(self, gang: Gang) -> None:
        """Take the room of workers that are admitted and not bound yet."""
        bound = sum(int(of[gang.uid].get("pods", 0)) for of in self.usage.values() if gang.uid in of)
        missing = gang.workers - bound
        if missing > 0 and not gang.leaving:
            counts = self._counts(gang.shape, now=True)
            self._take(gang, _spread_out(counts, missing))

    def _counts(self, shape: Shape, *, now: bool) -> Placement:
        """How many workers each open node has room for."""
        if shape not in self._open:
            self._open[shape] = [index for index, room in enumerate(self.rooms) if room.takes(shape)]
        counts: Placement = {}
        for index in self._open[shape]:
            room = self.rooms[index]
            offered = room.free if now else room.total
            count = 1 << 30
            for name, amount in shape.requests:
                if amount > 0:
                    left = offered.get(name, 0.0)
                    if now and room.aside:
                        left = min(left, room.total.get(name, 0.0) - room.aside.get(name, 0.0))
                    count = min(count, int(left / amount + 1e-9))
            counts[index] = max(count, 0)
        return counts

    def _place(self, gang: Gang, *, now: bool, fresh: bool = False) -> Placement | None:
        """Nodes for a whole gang, or None. Room only shrinks within a pass, so what failed once is not tried again."""
        key = (gang.shape, gang.workers, gang.spread)
        if now and not fresh and key in self._failed:
            return None
        counts = self._counts(gang.shape, now=now)
        placed = self._balanced(counts, gang.workers) if gang.spread else _spread_out(counts, gang.workers)
        if sum(placed.values()) >= gang.workers:
            return placed
        if now and not fresh:
            self._failed.add(key)
        return None

    def _balanced(self, counts: Placement, workers: int) -> Placement:
        """Workers balanced over the zones of the open nodes (maxSkew 1), as far as that goes."""
        zones = sorted({self.rooms[index].zone for index in counts} - {""})
        if not zones:
            return _spread_out(counts, workers)
        by_zone = {zone: {i: n for i, n in counts.items() if self.rooms[i].zone == zone} for zone in zones}
        least, more = divmod(workers, len(zones))
        placed: Placement = {}
        # Zones with the most room take the ones that are left over.
        for zone in sorted(zones, key=lambda name: -sum(by_zone[name].values())):
            placed |= _spread_out(by_zone[zone], least + (more > 0))
            more -= 1
        return placed

    def _take(self, gang: Gang, placed: Placement) -> None:
        for index, count in placed.items():
            room = self.rooms[index]
            self._taken[index, gang.uid] = count
            for name, amount in gang.shape.requests:
                if name in room.free:
                    room.free[name] -= amount * count
                if room.aside:
                    room.aside[name] = room.aside.get(name, 0.0) + amount * count

    def _set_aside(self, gang: Gang, placed: Placement) -> None:
        self._aside = True
        behind = [item for item in self.gangs if item.admitted and item.rank > gang.rank and not item.leaving]
        for index, count in placed.items():
            if not count:
                continue
            room = self.rooms[index]
            room.aside = {name: amount * count for name, amount in gang.shape.requests}
            for item in behind:
                coming = self._taken.get((index, item.uid), 0)
                used = self.usage.get(room.name, {}).get(item.uid, {})
                for name in {*used, *(name for name, _ in item.shape.requests)}:
                    more = used.get(name, 0.0) + coming * dict(item.shape.requests).get(name, 0.0)
                    room.aside[name] = room.aside.get(name, 0.0) + more

    def _waits(self, gang: Gang, victims: Sequence[Gang]) -> Admission:
        counts = self._counts(gang.shape, now=True)
        lacking = self._lacking(gang, now=True)
        pushed = ""
        if victims:
            names = ", ".join(item.name for item in victims[:PLACES])
            pushed = f". {names} of lower priority {'makes' if len(victims) == 1 else 'make'} room for it"
        return Admission(
            False,
            resource_reason(lacking),
            f"{self._asks(gang)}; there is room for {self._placeable(gang, counts)} of them now, all or none "
            f"start. Short of {lacking}: {self._where(counts)}. It is the first in the queue and keeps its place: "
            f"it starts once running jobs end or a node is added{pushed}",
        )

    def _too_big(self, gang: Gang) -> Admission:
        counts = self._counts(gang.shape, now=False)
        lacking = self._lacking(gang, now=False)
        return Admission(
            False,
            resource_reason(lacking) if counts else "NoMatchingNode",
            f"{self._asks(gang)}; even with no other job the cluster has room for {self._placeable(gang, counts)} of "
            f"them, all or none start. Short of {lacking}: {self._where(counts)}. Add nodes, or lower numWorkers "
            "or resources, or change nodeSelector, gpu.product or topology.zoneSpread",
        )

    def _behind(self) -> Admission:
        return Admission(
            False,
            "WaitingInQueue",
            "jobs with a higher priority, or as high a one and older or of a namespace that has less, wait for room "
            "too; this one starts as soon as it fits without delaying them. A higher priorityClassName would bring it "
            "forward",
        )

    def _asks(self, gang: Gang) -> str:
        asked = ", ".join(f"{name}={_number(amount)}" for name, amount in gang.shape.requests if name != "pods")
        spread = ", balanced over zones," if gang.spread else ""
        return f"{gang.workers} workers{spread} ask for {asked or 'no resources'} each"

    def _placeable(self, gang: Gang, counts: Placement) -> int:
        placed = self._balanced(counts, gang.workers) if gang.spread else _spread_out(counts, gang.workers)
        return sum(placed.values())

    def _lacking(self, gang: Gang, *, now: bool) -> str:
        """The resource that limits the gang most, GPUs and other devices before the rest."""
        open_rooms = [self.rooms[index] for index in self._counts(gang.shape, now=now)]

        def holds(item: tuple[str, float]) -> tuple[float, bool]:
            name, amount = item
            left = [(room.free if now else room.total).get(name, 0.0) for room in open_rooms]
            return sum(int(each / amount + 1e-9) for each in left), "/" not in name

        return min(((name, amount) for name, amount in gang.shape.requests if amount > 0), key=holds)[0]

    def _where(self, counts: Placement) -> str:
        if not counts:
            return "no node has the labels that it asks for and lets it in"
        most = sorted(counts.items(), key=lambda item: (-item[1], self.rooms[item[0]].name))[:PLACES]
        more = f" and {len(counts) - len(most)} more nodes" if len(counts) > len(most) else ""
        return ", ".join(f"{self.rooms[index].name} has room for {count}" for index, count in most) + more


def _add(total: dict[str, float], more: Amounts, times: float) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0.0) + amount * times


def _spread_out(counts: Placement, workers: int) -> Placement:
    """Workers on the nodes with the most room, evenly, as the scheduler does it; fewer where there is no more room."""
    total = sum(counts.values())
    if total <= workers:
        return dict(counts)
    low, high = 0, max(counts.values())
    # The least number of workers kept free on each node with which the rest still suffices.
    while low < high:
        middle = (low + high + 1) // 2
        if sum(max(count - middle, 0) for count in counts.values()) >= workers:
            low = middle
        else:
            high = middle - 1
    placed = {index: max(count - low, 0) for index, count in counts.items()}
    extra = sum(placed.values()) - workers
    for index in placed:
        if extra and placed[index]:
            placed[index] -= 1
            extra -= 1
    return placed


def amounts(quantities: Mapping[str, str | int]) -> dict[str, float]:
    """Quantities as numbers."""
    return {name: parse_quantity(value) for name, value in quantities.items()}


_BINARY = (("Ti", 2.0**40), ("Gi", 2.0**30), ("Mi", 2.0**20))


def _number(amount: float) -> str:
    for suffix, unit in _BINARY:
        if amount >= unit and amount % unit == 0:
            return f"{amount / unit:g}{suffix}"
    return f"{amount:g}"


def _reversed(text: str) -> tuple[int, ...]:
    """Sort key that puts the latest text first."""
    return tuple(-ord(letter) for letter in text)
