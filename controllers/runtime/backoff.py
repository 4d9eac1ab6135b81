"""Exponential backoff with jitter, as one pure function of the number of failures."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double from `base` to `cap`, each shortened by a random part.

    The jitter is AWS's "equal jitter": half of the delay is kept, the other half is uniformly random, so that many
    clients that failed at the same moment do not come back at the same moment, and none comes back at once.
    (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.)

    Attributes:
        base: Longest first delay, seconds.
        cap: Longest delay of all, seconds.
        rng: Source of the jitter.
    """

    base: float
    cap: float
    rng: random.Random = field(default_factory=random.Random)

    def delay(self, failures: int) -> float:
        """Seconds to wait after the given number of failures in a row (1 for the first)."""
        # 2.0 ** 1024 overflows a float; no cap is reached later than after 64 doublings.
        full = min(self.cap, self.base * 2.0 ** min(max(failures, 1) - 1, 64))
        return full / 2 + self.rng.random() * full / 2
