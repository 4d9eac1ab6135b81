"""Which processes are near each other: those of one zone, or of one node where zones are not known.

A zone costs a slow link; topologies that know the groups cross it once instead of once per process.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

_WIDTH = 320
"""Bytes for a place's name; labels and node names have at most 253."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The groups of a run, as one process sees them.

    Attributes:
        groups: Ranks of each group, groups in the order of their lowest rank.
        index: This process's group.
        near: Process group of this process's group; None where it is alone in it.
        leaders: Process group of the lowest rank of each group; None on the others and with one group.
    """

    groups: tuple[tuple[int, ...], ...]
    index: int
    near: Any
    leaders: Any

    @property
    def mine(self) -> tuple[int, ...]:
        """Ranks of this process's group."""
        return self.groups[self.index]

    @property
    def leader(self) -> int:
        """The rank that speaks for this process's group."""
        return self.mine[0]


def neighbours(place: str, rank: int, device: Any) -> Neighbours:
    """Find out who is near whom. Collective.

    Args:
        place: Name of this process's zone or node; an empty one is a place of its own.
        rank: Rank of this process.
        device: Device of the default process group's tensors.
    """
    import torch.distributed as dist

    places = all_gather_text(place, device)
    groups = group_by_place(places)
    if rank == 0:
        named = ", ".join(f"{places[members[0]] or 'unknown'} ({len(members)})" for members in groups)
        logger.info("%d groups of processes by place: %s", len(groups), named)
    near = leaders = None
    # Every process must take part in making every group, in the same order.
    for members in groups:
        if len(members) > 1:
            made = dist.new_group(list(members))
            if rank in members:
                near = made
    heads = [members[0] for members in groups]
    if len(groups) > 1:
        made = dist.new_group(heads)
        if rank in heads:
            leaders = made
    index = next(index for index, members in enumerate(groups) if rank in members)
    return Neighbours(groups, index, near, leaders)


def group_by_place(places: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Ranks that share a place, in the order of each group's lowest rank.

    >>> group_by_place(["a", "b", "a", ""])
    ((0, 2), (1,), (3,))
    """
    found: dict[tuple[str, int], list[int]] = {}
    for rank, place in enumerate(places):
        found.setdefault((place, -1) if place else ("", rank), []).append(rank)
    return tuple(tuple(members) for members in found.values())


def all_gather_text(text: str, device: Any) -> list[str]:
    """Each rank's `text`, in order of rank. Collective.

    Raises:
        ValueError: the text has more than 316 bytes.
    """
    import numpy as np
    import torch
    import torch.distributed as dist

    data = text.encode()
    if len(data) > _WIDTH - 4:
        raise ValueError(f"a text of {len(data)} bytes cannot be exchanged, at most {_WIDTH - 4} can")
    mine = np.zeros(_WIDTH, np.uint8)
    mine[:4] = np.frombuffer(len(data).to_bytes(4, "little"), np.uint8)
    mine[4 : 4 + len(data)] = np.frombuffer(data, np.uint8)
    parts = [torch.empty(_WIDTH, dtype=torch.uint8, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, torch.from_numpy(mine).to(device))
    texts: list[str] = []
    for part in parts:
        raw = part.cpu().numpy().tobytes()
        texts.append(raw[4 : 4 + int.from_bytes(raw[:4], "little")].decode())
    return texts
