"""What is said for completeness has an allowance, so that it never becomes the work.

While thousands of resources come up at once, how far each of them is costs the API server as much as bringing them up,
and slows that down. So such writes are drawn from a token bucket that all resources share: a few at once, then a steady
trickle. Whatever changes a verdict is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Allowance:
    """A token bucket.

    Args:
        rate: Tokens per second.
        burst: Tokens that it holds at most, and at first.
        clock: Seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._seen = clock()

    def take(self) -> bool:
        """Take a token; False where there is none."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._rate)
        self._seen = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
