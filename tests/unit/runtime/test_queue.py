"""The keyed queue: once per key, one worker per key, backoff per key. Time is a number that the test moves."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from controllers.runtime.backoff import Backoff
from controllers.runtime.queue import KeyedQueue, QueueClosed


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> KeyedQueue[str]:
    return KeyedQueue(backoff=Backoff(base=1.0, cap=8.0, rng=random.Random(7)), clock=clock)


def drain(queue: KeyedQueue[str]) -> list[str]:
    keys = []
    while (key := queue.pop()) is not None:
        keys.append(key)
        queue.done(key)
    return keys


def test_a_key_waits_once_however_often_it_is_added(queue: KeyedQueue[str]) -> None:
    for key in "abacab":
        queue.add(key)
    assert drain(queue) == ["a", "b", "c"]


def test_a_key_in_work_is_not_handed_out_again_until_done_and_then_it_is(queue: KeyedQueue[str]) -> None:
    queue.add("a")
    assert queue.pop() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.pop() is None
    queue.done("a")
    assert drain(queue) == ["a"]


def test_a_delayed_key_comes_when_it_is_due_and_not_before(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add_after("late", 5.0)
    queue.add_after("soon", 2.0)
    assert queue.pop() is None
    clock.now += 2.0
    assert drain(queue) == ["soon"]
    clock.now += 2.9
    assert queue.pop() is None
    clock.now += 0.1
    assert drain(queue) == ["late"]


def test_of_several_delays_the_earliest_counts(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add_after("a", 5.0)
    queue.add_after("a", 1.0)
    queue.add_after("a", 9.0)
    clock.now += 1.0
    assert drain(queue) == ["a"]
    clock.now += 20.0
    assert queue.pop() is None


def test_looking_now_answers_the_later_look_too(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add_after("a", 5.0)
    queue.add("a")
    assert drain(queue) == ["a"]
    clock.now += 10.0
    assert queue.pop() is None


def test_a_delay_that_ends_while_the_key_is_in_work_is_kept(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add("a")
    assert queue.pop() == "a"
    queue.add_after("a", 1.0)
    clock.now += 2.0
    assert queue.pop() is None
    queue.done("a")
    assert drain(queue) == ["a"]


def test_failures_of_one_key_double_its_delay_up_to_the_cap_and_hold_up_no_other(
    queue: KeyedQueue[str], clock: Clock
) -> None:
    # Equal jitter: between half of the full delay and the full delay, which doubles from 1 to at most 8.
    for full in (1, 2, 4, 8, 8, 8):
        delay = queue.retry("bad")
        assert full / 2 <= delay <= full
        queue.add("good")
        assert drain(queue) == ["good"]
        clock.now += delay
        assert drain(queue) == ["bad"]
    assert queue.failures("bad") == 6
    queue.forget("bad")
    assert 0.5 <= queue.retry("bad") <= 1.0


def test_the_jitter_spreads_keys_that_failed_together() -> None:
    backoff = Backoff(base=10.0, cap=10.0, rng=random.Random(1))
    delays = [backoff.delay(1) for _ in range(200)]
    assert len({round(delay, 3) for delay in delays}) > 150
    # Uniform over [5, 10]: mean 7.5 with a standard error of 5/sqrt(12*200) = 0.1.
    assert abs(sum(delays) / len(delays) - 7.5) < 0.5


def test_a_thousand_failures_do_not_overflow() -> None:
    assert Backoff(base=1.0, cap=300.0).delay(5000) <= 300.0


async def test_no_event_is_lost_and_no_key_is_worked_on_twice_at_a_time() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    at_work: Counter[str] = Counter()
    seen: dict[str, int] = {}
    state = dict.fromkeys("abcdef", 0)

    async def worker() -> None:
        while True:
            try:
                key = await queue.get()
            except QueueClosed:
                return
            at_work[key] += 1
            assert at_work[key] == 1
            read = state[key]
            await asyncio.sleep(0)
            seen[key] = read
            at_work[key] -= 1
            queue.done(key)

    workers = [asyncio.create_task(worker()) for _ in range(4)]
    rng = random.Random(3)
    for _ in range(2000):
        key = rng.choice("abcdef")
        state[key] += 1
        queue.add(key)
        if rng.random() < 0.3:
            await asyncio.sleep(0)
    for _ in range(10_000):
        await asyncio.sleep(0)
        if queue.idle:
            break
    queue.close()
    await asyncio.gather(*workers)
    assert seen == state  # the last look at each key saw its last change


async def test_get_wakes_for_a_key_that_becomes_due_earlier_than_the_one_it_sleeps_for() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add_after("late", 60.0)
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add_after("soon", 0.01)
    async with asyncio.timeout(5):
        assert await getting == "soon"


async def test_what_becomes_due_while_one_worker_works_is_taken_by_another() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    getters = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add_after("first", 0.01)
    queue.add_after("second", 0.02)
    async with asyncio.timeout(5):  # nobody calls done, so each getter gets one
        assert sorted(await asyncio.gather(*getters)) == ["first", "second"]


async def test_close_ends_those_who_wait_and_lets_work_finish() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add("a")
    assert queue.pop() == "a"
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.close()
    with pytest.raises(QueueClosed):
        await getting
    queue.add("b")
    queue.done("a")
    assert queue.pop() is None
