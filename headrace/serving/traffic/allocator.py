"""Which arm a unit (a user, a session) is in: one small interface, and the split by weights that canaries use.

An allocation is a pure function of the unit, the salt and the weights. So it is the same in every router and after
every restart, with nothing stored and nothing shared.

The split is weighted rendezvous hashing (Schindelhauer and Schomaker, «Weighted distributed hash tables», SPAA 2005,
the logarithmic method): each arm draws -ln(u) / weight, where u in (0, 1) is a hash of salt, arm and unit, and the
least draw wins. -ln(u) / weight is exponentially distributed with that rate, so an arm wins with a probability of its
weight over the sum. An arm's draw does not depend on the others: raising one arm's weight moves units to that arm and
between no other two, and no more of them than its share grows by.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping
from typing import Protocol


class Allocator(Protocol):
    """Says in which arm a unit is."""

    def allocate(self, unit: str) -> str:
        """Name of the unit's arm, always the same for the same unit; an empty unit is nobody, and any arm may come."""


class WeightedSplit:
    """Arms by weight.

    Args:
        salt: What the split is for; another salt deals the units anew.
        weights: Weight of each arm, at least 0, their sum above 0. Only their proportions matter.
        draw: Uniform numbers in [0, 1) for requests without a unit.

    Raises:
        ValueError: no arm has a weight above 0, or one has less than 0.
    """

    def __init__(self, salt: str, weights: Mapping[str, float], draw: Callable[[], float] = random.random) -> None:
        if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError(f"weights must be at least 0 and one of them above 0, found {dict(weights)}")
        self._draw = draw
        self._total = math.fsum(weights.values())
        self._arms = tuple((name, weight) for name, weight in weights.items() if weight > 0)
        # A prefix that no other salt and arm can spell: their lengths are in it.
        self._keys = tuple(
            (hashlib.blake2b(f"{len(salt)}:{salt}{len(name)}:{name}".encode(), digest_size=8), weight, name)
            for name, weight in self._arms
        )

    def allocate(self, unit: str) -> str:
        if len(self._arms) == 1:
            return self._arms[0][0]
        return self._by_hash(unit.encode("utf-8", "surrogateescape")) if unit else self._at_random()

    def _by_hash(self, unit: bytes) -> str:
        best, chosen = math.inf, ""
        for prefix, weight, name in self._keys:
            digest = prefix.copy()
            digest.update(unit)
            # 53 bits in the middle of their cell: never 0 and never 1.
            uniform = ((int.from_bytes(digest.digest(), "big") >> 11) + 0.5) * 2.0**-53
            drawn = -math.log(uniform) / weight
            if drawn < best:
                best, chosen = drawn, name
        return chosen

    def _at_random(self) -> str:
        left = self._draw() * self._total
        for name, weight in self._arms:
            left -= weight
            if left < 0:
                return name
        return self._arms[-1][0]
