"""Latencies as counts in buckets that grow by a tenth, so that those of many routers add up to one quantile.

A quantile read from them is the upper end of its bucket: at most 10 % above the true one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

LEAST = 1e-4
"""Seconds; all that is faster is in bucket 0."""
GROWTH = 1.1
"""Upper end of a bucket over its lower end."""
BUCKETS = 160
"""Buckets; the last takes all above its lower end (about 380 s)."""
_SCALE = 1 / math.log(GROWTH)


def bucket(seconds: float) -> int:
    """The bucket of a latency."""
    if seconds <= LEAST:
        return 0
    return min(BUCKETS - 1, int(math.log(seconds / LEAST) * _SCALE))


def upper_end(index: int) -> float:
    """Seconds at the upper end of a bucket."""
    return float(LEAST * GROWTH ** (index + 1))


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """Seconds that a part `q` of the latencies did not exceed (the nearest rank, rounded up to its bucket's end).

    None where nothing was counted.
    """
    total = sum(counts.values())
    if total == 0:
        return None
    rank = max(1, math.ceil(q * total))
    seen = 0
    for index in sorted(counts):
        seen += counts[index]
        if seen >= rank:
            return upper_end(index)
    raise AssertionError("the ranks end at the total")
