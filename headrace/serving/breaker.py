"""A circuit breaker with resilience4j's count-based sliding window (https://resilience4j.readme.io/docs/circuitbreaker).

CLOSED: every call is permitted; the outcomes of the last `sliding_window_size` calls are kept. Once there are
`minimum_number_of_calls` of them and the failed ones make up at least `failure_rate_threshold` percent, it opens.

OPEN: no call is permitted. The first call after the wait makes it half-open and is permitted.

HALF_OPEN: `permitted_calls` trial calls are permitted, any more are not. When all of them have an outcome (or as many
as `minimum_number_of_calls`, where that is less), the same threshold decides between OPEN (a new wait) and CLOSED (an
empty window). A trial that ends without an outcome (cancelled, or the caller's mistake) gives its permit back.

A permit knows the state that it was given in, and an outcome that arrives after the state has changed counts nowhere:
calls that were sent before the breaker opened say nothing about whether the step has recovered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from headrace.api.inferenceservice import CircuitBreaker
from headrace.api.meta import parse_duration


class State(IntEnum):
    """State of a breaker; the numbers are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call, to be ended by exactly one of `success`, `failure` and `release`."""

    generation: int


class Breaker:
    """The state machine. Not thread-safe: it lives on one event loop.

    Args:
        config: Window, threshold and wait.
        clock: Monotonic seconds.
        on_change: Told the old and the new state.
    """

    def __init__(
        self,
        config: CircuitBreaker,
        clock: Callable[[], float],
        on_change: Callable[[State, State], None] = lambda old, new: None,
    ) -> None:
        self.state = State.CLOSED
        self._window_size = config.sliding_window_size
        self._minimum = config.minimum_number_of_calls
        self._threshold = config.failure_rate_threshold
        self._wait = parse_duration(config.wait_duration_in_open_state).total_seconds()
        self._permitted = config.permitted_calls_in_half_open_state
        self._clock = clock
        self._on_change = on_change
        self._generation = 0
        self._window: deque[bool] = deque()
        self._failures = 0
        self._limit = self._window_size
        # resilience4j clamps it likewise: a window can never hold more calls than its size.
        self._needed = min(self._minimum, self._limit)
        self._permits_left = 0
        self._open_until = 0.0

    @property
    def wait_over(self) -> bool:
        """Whether it is open and the next call would be a trial."""
        return self.state is State.OPEN and self._clock() > self._open_until

    @property
    def failure_rate(self) -> float:
        """Percent of failed calls in the window; -1 below the minimum number of calls."""
        if len(self._window) < self._needed:
            return -1.0
        return self._failures * 100.0 / len(self._window)

    def try_acquire(self) -> Permit | None:
        """Leave for one call, or None when the step is not to be asked."""
        if self.state is State.CLOSED:
            return Permit(self._generation)
        if self.state is State.OPEN:
            if self._clock() <= self._open_until:
                return None
            self._enter(State.HALF_OPEN)
        if self._permits_left == 0:
            return None
        self._permits_left -= 1
        return Permit(self._generation)

    def success(self, permit: Permit) -> None:
        """The call was answered."""
        self._record(permit, failed=False)

    def failure(self, permit: Permit) -> None:
        """The call failed or timed out."""
        self._record(permit, failed=True)

    def release(self, permit: Permit) -> None:
        """The call ended without saying anything about the step."""
        if permit.generation == self._generation and self.state is State.HALF_OPEN:
            self._permits_left += 1

    def _record(self, permit: Permit, *, failed: bool) -> None:
        if permit.generation != self._generation:
            return
        if len(self._window) == self._limit:
            self._failures -= self._window.popleft()
        self._window.append(failed)
        self._failures += failed
        rate = self.failure_rate
        if rate < 0:
            return
        if rate >= self._threshold:
            self._enter(State.OPEN)
        elif self.state is State.HALF_OPEN:
            self._enter(State.CLOSED)

    def _enter(self, state: State) -> None:
        old, self.state = self.state, state
        self._generation += 1
        self._window.clear()
        self._failures = 0
        trial = state is State.HALF_OPEN
        self._limit = self._permitted if trial else self._window_size
        self._needed = min(self._minimum, self._limit)
        self._permits_left = self._permitted if trial else 0
        if state is State.OPEN:
            self._open_until = self._clock() + self._wait
        self._on_change(old, state)
