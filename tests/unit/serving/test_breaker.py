"""The breaker does what resilience4j 2.3.0 does (data/resilience4j_trace.json was recorded from it)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.api.inferenceservice import CircuitBreaker
from headrace.serving.breaker import Breaker, Permit, State

TRACES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "resilience4j_trace.json").read_text())


class Clock:
    """Time that stands until it is moved; whole milliseconds, so that sums are exact."""

    def __init__(self) -> None:
        self.millis = 0

    def __call__(self) -> float:
        return self.millis / 1000


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: str(list(trace["config"].values())))
def test_every_state_and_rate_of_a_recorded_run_of_resilience4j(trace: dict[str, Any]) -> None:
    clock = Clock()
    breaker = Breaker(CircuitBreaker.model_validate(trace["config"]), clock)
    held: list[Permit] = []
    for i, (operation, argument, state, failure_rate, slow_call_rate) in enumerate(trace["events"]):
        before = breaker.state
        if operation == "advance":
            clock.millis += argument
        elif operation == "acquire":
            permit = breaker.try_acquire()
            assert (permit is not None) == bool(argument), (i, operation)
            if breaker.state is not before:
                held.clear()
            held += [permit] if permit else []
        else:
            duration = [] if operation == "release" else [argument / 1000]
            getattr(breaker, operation)(held.pop(), *duration)
            if breaker.state is not before:
                held.clear()
        assert breaker.state.name == state, (i, operation)
        if breaker.state is not State.OPEN:
            # resilience4j goes on showing the last rate while it is open.
            assert breaker.failure_rate == pytest.approx(failure_rate, abs=1e-4), (i, operation)
            assert breaker.slow_call_rate == pytest.approx(slow_call_rate, abs=1e-4), (i, operation)


def opened(clock: Clock) -> tuple[Breaker, Permit]:
    """An open breaker, and a permit of a call that began before."""
    breaker = Breaker(CircuitBreaker(sliding_window_size=4, minimum_number_of_calls=2), clock)
    early = breaker.try_acquire()
    assert early is not None
    for _ in range(2):
        permit = breaker.try_acquire()
        assert permit is not None
        breaker.failure(permit)
    assert breaker.state is State.OPEN
    return breaker, early


def test_a_call_from_before_the_breaker_opened_is_no_trial_call() -> None:
    clock = Clock()
    breaker, early = opened(clock)
    clock.millis = 5001
    trials = [breaker.try_acquire() for _ in range(4)]
    assert [permit is not None for permit in trials] == [True, True, True, False]
    breaker.success(early)
    breaker.release(early)
    assert breaker.try_acquire() is None
    for permit in trials[:3]:
        assert permit is not None
        breaker.success(permit)
    assert breaker.state is State.CLOSED


def test_changes_are_told_once_each() -> None:
    clock = Clock()
    told: list[tuple[State, State]] = []
    breaker = Breaker(
        CircuitBreaker(minimum_number_of_calls=1, permitted_calls_in_half_open_state=1),
        clock,
        lambda old, new: told.append((old, new)),
    )
    for outcome in (breaker.failure, breaker.success):
        permit = breaker.try_acquire()
        assert permit is not None
        outcome(permit)
        clock.millis += 5001
    assert told == [
        (State.CLOSED, State.OPEN),
        (State.OPEN, State.HALF_OPEN),
        (State.HALF_OPEN, State.CLOSED),
    ]
