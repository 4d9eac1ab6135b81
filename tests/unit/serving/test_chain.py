"""The order of steps and the reasons for going on, with steps that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from headrace.api.inferenceservice import CircuitBreaker
from headrace.serving.breaker import Breaker, State
from headrace.serving.chain import Chain, Guarded, Reason, Unanswered
from headrace.serving.messages import Query, Reply
from tests.unit.serving.waiting import until

QUERY = Query(b"{}")
OK = Reply(200, b"{}")


class Scripted:
    """A step that does what `act` does."""

    def __init__(self, name: str, act: Callable[[], Awaitable[Reply]], unavailable: str = "") -> None:
        self.name = name
        self.unavailable = unavailable
        self.asked = 0
        self._act = act

    async def answer(self, query: Query, deadline: float) -> Reply:
        self.asked += 1
        return await self._act()

    async def metadata(self) -> bytes | None:
        return None


class Figures:
    """Counts what the chain reports of a step."""

    def __init__(self) -> None:
        self.answers = 0
        self.misses: list[tuple[Reason, bool]] = []

    def answered(self, seconds: float) -> None:
        self.answers += 1

    def missed(self, reason: Reason, seconds: float | None) -> None:
        self.misses.append((reason, seconds is not None))


async def ok() -> Reply:
    return OK


async def stall() -> Reply:
    await asyncio.sleep(30)
    return OK


async def bug() -> Reply:
    raise ZeroDivisionError("oops")


async def refuse() -> Reply:
    return Reply(400, b'{"error":"bad"}')


def failing(reason: Reason) -> Callable[[], Awaitable[Reply]]:
    async def act() -> Reply:
        raise Unanswered(reason, "why")

    return act


def guarded(step: Scripted, *, timeout: float = 0.05, limit: int = 10, config: CircuitBreaker | None = None) -> Guarded:
    clock = asyncio.get_running_loop().time
    config = config or CircuitBreaker(sliding_window_size=2, minimum_number_of_calls=2)
    return Guarded(step, timeout, limit, Breaker(config, clock), Figures())


def figures(guarded: Guarded) -> Figures:
    assert isinstance(guarded.metrics, Figures)
    return guarded.metrics


def state(guarded: Guarded) -> State:
    assert guarded.breaker is not None
    return guarded.breaker.state


def chain(*steps: Guarded) -> Chain:
    return Chain(steps, asyncio.get_running_loop().time)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (stall, "timeout"),
        (bug, "error"),
        (failing(Reason.ERROR), "error"),
        (failing(Reason.OVERLOADED), "overloaded"),
        (failing(Reason.NOT_READY), "not-ready"),
    ],
)
async def test_the_next_step_is_asked_and_the_reason_is_kept(act: Callable[[], Awaitable[Reply]], reason: str) -> None:
    first, second = guarded(Scripted("first", act)), guarded(Scripted("second", ok))
    result = await chain(first, second).ask(QUERY)
    assert (result.reply, result.step) == (OK, "second")
    assert [(miss.step, miss.reason) for miss in result.missed] == [("first", reason)]
    assert figures(first).misses == [(Reason(reason), True)]
    assert figures(second).answers == 1
    assert (first.in_flight, second.in_flight) == (0, 0)


async def test_a_step_that_is_not_ready_is_not_asked() -> None:
    step = Scripted("first", ok, unavailable="no replicas")
    result = await chain(guarded(step), guarded(Scripted("second", ok))).ask(QUERY)
    assert step.asked == 0
    assert (result.missed[0].reason, result.missed[0].message) == ("not-ready", "no replicas")


async def test_above_its_concurrency_a_step_counts_as_overloaded_and_its_breaker_hears_nothing() -> None:
    release = asyncio.Event()

    async def held() -> Reply:
        await release.wait()
        return OK

    first = guarded(Scripted("first", held), limit=2, timeout=30)
    both = chain(first, guarded(Scripted("second", ok)))
    waiting = [asyncio.ensure_future(both.ask(QUERY)) for _ in range(2)]
    await asyncio.sleep(0)
    results = [await both.ask(QUERY) for _ in range(5)]
    release.set()
    assert {result.missed[0].reason for result in results} == {"overloaded"}
    assert [(await task).step for task in waiting] == ["first", "first"]
    assert state(first) is State.CLOSED


async def test_a_wrong_request_is_answered_and_is_no_failure_of_the_step() -> None:
    first, second = guarded(Scripted("first", refuse)), Scripted("second", ok)
    both = chain(first, guarded(second))
    for _ in range(10):
        result = await both.ask(QUERY)
        assert result.reply is not None
        assert (result.reply.status, result.step) == (400, "first")
    assert second.asked == 0
    assert state(first) is State.CLOSED


@pytest.mark.parametrize(("act", "opens"), [(stall, True), (bug, True), (failing(Reason.OVERLOADED), False)])
async def test_errors_and_timeouts_open_the_breaker_and_an_open_step_is_not_asked(
    act: Callable[[], Awaitable[Reply]], opens: bool
) -> None:
    step = Scripted("first", act)
    both = chain(guarded(step, timeout=0.01), guarded(Scripted("second", ok)))
    reasons = [(await both.ask(QUERY)).missed[0].reason for _ in range(4)]
    assert (reasons[2:] == ["open", "open"]) is opens
    assert step.asked == (2 if opens else 4)


async def test_the_whole_chain_fits_in_the_callers_deadline_and_leaves_time_for_the_fallback() -> None:
    clock = asyncio.get_running_loop().time
    first = guarded(Scripted("first", stall), timeout=30)
    both = chain(first, guarded(Scripted("second", ok), timeout=30))
    begun = clock()
    for _ in range(3):
        result = await both.ask(QUERY, clock() + 0.1)
        assert (result.step, result.missed[0].reason) == ("second", "timeout")
    assert clock() - begun < 2
    # The caller's impatience says nothing about the step.
    assert state(first) is State.CLOSED


@pytest.mark.parametrize(
    ("act", "on", "asked"),
    [
        (bug, {Reason.ERROR}, 1),
        (bug, {Reason.TIMEOUT, Reason.OPEN}, 0),
        (stall, {Reason.TIMEOUT}, 1),
        (stall, {Reason.ERROR}, 0),
        (failing(Reason.OVERLOADED), {Reason.OVERLOADED}, 1),
        (failing(Reason.OVERLOADED), {Reason.ERROR}, 0),
    ],
)
async def test_the_next_step_is_asked_for_the_reasons_that_the_spec_names_alone(
    act: Callable[[], Awaitable[Reply]], on: set[Reason], asked: int
) -> None:
    first, second = guarded(Scripted("first", act)), Scripted("second", ok)
    first.fallback_on = frozenset(on)
    result = await chain(first, guarded(second)).ask(QUERY)
    assert second.asked == asked
    assert (result.reply is not None, len(result.missed)) == (bool(asked), 1)


async def test_the_chain_has_a_timeout_of_its_own_and_leaves_what_later_steps_reserve() -> None:
    clock = asyncio.get_running_loop().time
    begun = clock()
    found: list[float] = []

    async def later() -> Reply:
        found.append(clock() - begun)
        return OK

    first, second = guarded(Scripted("first", stall), timeout=30), guarded(Scripted("second", later), timeout=30)
    second.reserve = 0.2
    result = await Chain([first, second], clock, 0.5).ask(QUERY)
    assert (result.step, result.missed[0].reason) == ("second", "timeout")
    assert 0.29 < found[0] < 0.45, "0.5 s less the 0.2 s that the second reserves"
    begun = clock()
    found.clear()
    await Chain([first, second], clock, 30).ask(QUERY, clock() + 0.2)
    assert 0.09 < found[0] < 0.19, "a caller's shorter time goes before; at most half of it is reserved"


async def test_a_step_put_before_a_chain_leaves_it_half_of_a_deadline() -> None:
    clock = asyncio.get_running_loop().time
    first, second = guarded(Scripted("canary", stall), timeout=30), guarded(Scripted("predictor", ok), timeout=30)
    begun = clock()
    result = await chain(second).after(first).ask(QUERY, clock() + 0.4)
    assert (result.step, result.missed[0].reason) == ("predictor", "timeout")
    assert 0.19 < clock() - begun < 0.33


class TestHedging:
    async def test_a_silent_step_is_hedged_and_the_first_answer_counts(self) -> None:
        first, second = guarded(Scripted("first", stall), timeout=30), guarded(Scripted("second", ok))
        first.hedge_after = 0.02
        result = await chain(first, second).ask(QUERY)
        assert (result.step, result.missed[0].reason) == ("second", "hedged")
        assert figures(first).misses == [(Reason.HEDGED, False)]
        await until(lambda: first.in_flight == 0, "the slow call is given up")
        assert state(first) is State.CLOSED

    async def test_a_quick_step_is_not(self) -> None:
        first, second = guarded(Scripted("first", ok)), Scripted("second", ok)
        first.hedge_after = 10
        assert (await chain(first, guarded(second)).ask(QUERY)).step == "first"
        assert second.asked == 0

    async def test_its_own_answer_counts_while_the_next_is_silent_too(self) -> None:
        release = asyncio.Event()

        async def held() -> Reply:
            await release.wait()
            return OK

        second = Scripted("second", stall)
        first = guarded(Scripted("first", held), timeout=30)
        first.hedge_after = 0.01
        asked = asyncio.ensure_future(chain(first, guarded(second, timeout=30)).ask(QUERY))
        await until(lambda: second.asked == 1, "the second is asked beside the first")
        release.set()
        result = await asked
        assert (result.step, result.missed) == ("first", ())

    async def test_a_hedge_that_fails_waits_for_the_step_itself(self) -> None:
        release = asyncio.Event()

        async def held() -> Reply:
            await release.wait()
            return OK

        second = Scripted("second", bug)
        first = guarded(Scripted("first", held), timeout=30)
        first.hedge_after = 0.01
        asked = asyncio.ensure_future(chain(first, guarded(second)).ask(QUERY))
        await until(lambda: second.asked == 1, "the second is asked and fails")
        release.set()
        assert (await asked).step == "first"

    async def test_when_both_fail_both_are_named(self) -> None:
        first = guarded(Scripted("first", stall), timeout=0.05)
        first.hedge_after = 0.01
        result = await chain(first, guarded(Scripted("second", bug))).ask(QUERY)
        assert [(miss.step, miss.reason) for miss in result.missed] == [("first", "timeout"), ("second", "error")]


async def test_when_no_step_answers_each_is_named_with_its_reason() -> None:
    result = await chain(guarded(Scripted("a", stall)), guarded(Scripted("b", bug))).ask(QUERY)
    assert result.reply is None
    assert [(miss.step, miss.reason.value) for miss in result.missed] == [("a", "timeout"), ("b", "error")]
    assert "ZeroDivisionError" in result.missed[1].message


async def test_a_caller_who_leaves_gives_back_place_and_trial_call() -> None:
    config = CircuitBreaker(
        sliding_window_size=1,
        minimum_number_of_calls=1,
        wait_duration_in_open_state="1ms",
        permitted_calls_in_half_open_state=1,
    )
    acts = [bug, stall, ok]

    async def act() -> Reply:
        return await acts.pop(0)()

    step = guarded(Scripted("only", act), timeout=30, config=config)
    one = chain(step)
    assert (await one.ask(QUERY)).reply is None
    assert step.breaker is not None
    breaker = step.breaker
    await until(lambda: breaker.wait_over, "the wait is over")
    task = asyncio.ensure_future(one.ask(QUERY))
    await until(lambda: step.in_flight == 1, "the step is asked")
    assert state(step) is State.HALF_OPEN
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert step.in_flight == 0
    assert (await one.ask(QUERY)).reply == OK
    assert state(step) is State.CLOSED
