"""A circuit breaker with resilience4j's sliding windows (https://resilience4j.readme.io/docs/circuitbreaker).

CLOSED: every call is permitted; the outcomes of the last calls are kept: of the last `sliding_window_size` calls
(CountBased), or of the last so many whole seconds with the present one (TimeBased). Once there are
`minimum_number_of_calls` of them, it opens when the failed ones make up at least `failure_rate_threshold` percent, or
those that took longer than `slow_call_duration_threshold`, answered or not, at least `slow_call_rate_threshold`.

OPEN: no call is permitted. The first call after the wait makes it half-open and is permitted.

HALF_OPEN: `permitted_calls` trial calls are permitted, any more are not. When all of them have an outcome (or as many
as `minimum_number_of_calls`, where that is less), the same thresholds decide between OPEN (a new wait) and CLOSED (an
empty window). A trial that ends without an outcome (cancelled, or the caller's mistake) gives its permit back.

A permit knows the state that it was given in, and an outcome that arrives after the state has changed counts nowhere:
calls that were sent before the breaker opened say nothing about whether the step has recovered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

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


class Window(Protocol):
    """The outcomes that count."""

    calls: int
    failed: int
    slow: int

    def record(self, failed: bool, slow: bool) -> None:
        """One more outcome."""

    def move(self) -> None:
        """Forget what is too old by now."""


class CountWindow:
    """The last `size` calls."""

    def __init__(self, size: int) -> None:
        self.calls = self.failed = self.slow = 0
        self._size = size
        self._outcomes: deque[tuple[bool, bool]] = deque()

    def record(self, failed: bool, slow: bool) -> None:
        if self.calls == self._size:
            old_failed, old_slow = self._outcomes.popleft()
            self.failed -= old_failed
            self.slow -= old_slow
            self.calls -= 1
        self._outcomes.append((failed, slow))
        self.calls += 1
        self.failed += failed
        self.slow += slow

    def move(self) -> None:
        """Calls grow old by calls alone."""


class TimeWindow:
    """The last `seconds` whole seconds of the clock, the present one among them, each as a sum."""

    def __init__(self, seconds: int, clock: Callable[[], float]) -> None:
        self.calls = self.failed = self.slow = 0
        self._seconds = seconds
        self._clock = clock
        self._sums: deque[list[int]] = deque()
        """[second, calls, failed, slow], the newest last."""

    def record(self, failed: bool, slow: bool) -> None:
        self.move()
        second = int(self._clock())
        if not self._sums or self._sums[-1][0] != second:
            self._sums.append([second, 0, 0, 0])
        for index, amount in enumerate((1, failed, slow), start=1):
            self._sums[-1][index] += amount
        self.calls += 1
        self.failed += failed
        self.slow += slow

    def move(self) -> None:
        oldest = int(self._clock()) - self._seconds + 1
        while self._sums and self._sums[0][0] < oldest:
            _, calls, failed, slow = self._sums.popleft()
            self.calls -= calls
            self.failed -= failed
            self.slow -= slow


class Breaker:
    """The state machine. Not thread-safe: it lives on one event loop.

    Args:
        config: Window, thresholds and wait.
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
        self._config = config
        self._wait = parse_duration(config.wait_duration_in_open_state).total_seconds()
        self._slow_after = parse_duration(config.slow_call_duration_threshold).total_seconds()
        self._permitted = config.permitted_calls_in_half_open_state
        self._clock = clock
        self._on_change = on_change
        self._generation = 0
        self._window, self._needed = self._closed_window()
        self._permits_left = 0
        self._open_until = 0.0

    @property
    def wait_over(self) -> bool:
        """Whether it is open and the next call would be a trial."""
        return self.state is State.OPEN and self._clock() > self._open_until

    @property
    def failure_rate(self) -> float:
        """Percent of failed calls in the window; -1 below the minimum number of calls."""
        return self._rate(lambda window: window.failed)

    @property
    def slow_call_rate(self) -> float:
        """Percent of slow calls in the window; -1 below the minimum number of calls."""
        return self._rate(lambda window: window.slow)

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

    def success(self, permit: Permit, seconds: float = 0.0) -> None:
        """The call was answered after so long."""
        self._record(permit, failed=False, seconds=seconds)

    def failure(self, permit: Permit, seconds: float = 0.0) -> None:
        """The call failed or timed out after so long."""
        self._record(permit, failed=True, seconds=seconds)

    def release(self, permit: Permit) -> None:
        """The call ended without saying anything about the step."""
        if permit.generation == self._generation and self.state is State.HALF_OPEN:
            self._permits_left += 1

    def _record(self, permit: Permit, *, failed: bool, seconds: float) -> None:
        if permit.generation != self._generation:
            return
        window = self._window
        window.record(failed, seconds > self._slow_after)
        if window.calls < self._needed:
            return
        config = self._config
        failing = window.failed * 100.0 >= config.failure_rate_threshold * window.calls
        if failing or window.slow * 100.0 >= config.slow_call_rate_threshold * window.calls:
            self._enter(State.OPEN)
        elif self.state is State.HALF_OPEN:
            self._enter(State.CLOSED)

    def _rate(self, part: Callable[[Window], int]) -> float:
        window = self._window
        window.move()
        return -1.0 if window.calls < self._needed else part(window) * 100.0 / window.calls

    def _closed_window(self) -> tuple[Window, int]:
        config = self._config
        if config.sliding_window_type == "TimeBased":
            return TimeWindow(config.sliding_window_size, self._clock), config.minimum_number_of_calls
        # resilience4j clamps it likewise: a window can never hold more calls than its size.
        needed = min(config.minimum_number_of_calls, config.sliding_window_size)
        return CountWindow(config.sliding_window_size), needed

    def _enter(self, state: State) -> None:
        old, self.state = self.state, state
        self._generation += 1
        if state is State.HALF_OPEN:
            self._window = CountWindow(self._permitted)
            self._needed = min(self._config.minimum_number_of_calls, self._permitted)
        else:
            self._window, self._needed = self._closed_window()
        self._permits_left = self._permitted if state is State.HALF_OPEN else 0
        if state is State.OPEN:
            self._open_until = self._clock() + self._wait
        self._on_change(old, state)
