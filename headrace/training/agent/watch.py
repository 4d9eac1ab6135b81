"""When a training process counts as hung: no step within a bound that is learnt from its own steps.

The bound is ten times the slowest of the recent steps, and at least FLOOR: an evaluation now and then may take
minutes where a step takes milliseconds. Each hang doubles the floor, so a job whose pauses are longer than that finds
its bound instead of restarting for ever. `restartPolicy.hangTimeout` replaces both. A process that says nothing at all
(a script without a session) is not judged.
"""

from __future__ import annotations

from headrace.training.agent.beats import Beat

FACTOR = 10
FLOOR = 300.0
"""Seconds; the default timeout of a collective, which ends most hangs by itself."""
UNBOUNDED = float("inf")


def bound(beat: Beat, hang_timeout: float, hangs: int) -> float:
    """Seconds without a beat that count as a hang.

    Args:
        beat: What the process last said.
        hang_timeout: Set by the user; 0: learn it.
        hangs: Hangs of this job so far.
    """
    # Before the first step there is nothing to learn from: data may be read, a checkpoint restored, a model compiled.
    if beat.finishing or not beat.steps:
        return UNBOUNDED
    if hang_timeout:
        return hang_timeout
    return max(FLOOR * 2.0 ** min(hangs, 16), FACTOR * beat.slowest)


class Clock:
    """Time in which the agent itself was awake: a machine or container that was suspended is nobody's hang.

    Args:
        now: Monotonic time.
        tick: Seconds between two calls of `awake`, as intended.
    """

    def __init__(self, now: float, tick: float) -> None:
        self._last = now
        self._tick = tick
        self._slept: list[tuple[float, float]] = []

    def awake(self, now: float) -> None:
        """Called once per tick."""
        late = now - self._last - self._tick
        if late > self._tick:
            self._slept = [*self._slept[-15:], (now, late)]
        self._last = now

    def since(self, at: float, now: float) -> float:
        """Seconds from `at` to `now` without those that were slept through."""
        return now - at - sum(late for moment, late in self._slept if moment > at)
