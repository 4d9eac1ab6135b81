"""The account of a run's time adds up, over sessions that ended well, were killed, or hung."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from headrace.training.goodput import Goodput


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


def steps(goodput: Goodput, clock: Clock, count: int, seconds: float = 1.0, pause: float = 0.0) -> None:
    for number in range(count):
        clock.tick(seconds + pause)
        goodput.step((number + 1) * pause)


def sums_up(content: dict[str, float]) -> float:
    return sum(value for name, value in content.items() if name not in ("since", "at"))


def test_a_run_that_nothing_happens_to() -> None:
    clock = Clock()
    goodput = Goodput("a", clock)
    clock.tick(7)
    goodput.begin(None)
    steps(goodput, clock, 100, 1.0, pause=0.02)
    content = goodput.content()
    assert content["startup"] == 7
    assert content["useful"] == pytest.approx(100)
    assert content["checkpoint"] == pytest.approx(2)
    assert sums_up(content) == pytest.approx(content["at"] - content["since"])


def test_a_killed_run_loses_the_steps_after_its_checkpoint_and_the_way_back() -> None:
    clock = Clock()
    first = Goodput("a", clock)
    clock.tick(5)
    first.begin(None)
    steps(first, clock, 60)
    in_checkpoint = first.useful
    steps(first, clock, 20)
    record = first.record()  # and here it is killed
    clock.tick(12)
    second = Goodput("a", clock)
    second.take_over(record)
    clock.tick(3)
    second.begin(in_checkpoint)
    steps(second, clock, 40)
    content = second.content()
    assert content == {
        "since": 1000, "at": 1140, "useful": 100, "startup": 5, "restart": 15, "checkpoint": 0, "lostSteps": 20,
        "hang": 0,
    }  # fmt: skip
    assert sums_up(content) == content["at"] - content["since"]


def test_a_hang_is_told_from_the_restart_after_it() -> None:
    clock = Clock()
    first = Goodput("a", clock)
    first.begin(None)
    steps(first, clock, 50)
    clock.tick(300)
    record = first.record()
    clock.tick(10)
    second = Goodput("a", clock)
    second.take_over(record)
    second.begin(first.useful)
    assert second.content()["hang"] == 300
    assert second.content()["restart"] == 10


def test_sessions_that_never_trained_belong_to_the_start_or_the_way_back() -> None:
    clock = Clock()
    record = Goodput("a", clock).record()  # killed while it waited for the others
    clock.tick(30)
    first = Goodput("a", clock)
    first.take_over(record)
    clock.tick(2)
    first.begin(None)
    steps(first, clock, 10)
    record = first.record()
    for _ in range(2):
        clock.tick(20)
        lost = Goodput("a", clock)
        lost.take_over(record)
        record = lost.record()
    lost.begin(10)
    content = lost.content()
    assert (content["startup"], content["useful"], content["restart"], content["lostSteps"]) == (32, 10, 40, 0)


def test_a_checkpoint_that_is_not_found_again_costs_everything() -> None:
    clock = Clock()
    first = Goodput("a", clock)
    first.begin(None)
    steps(first, clock, 50)
    second = Goodput("a", clock)
    second.take_over(first.record())
    second.begin(None)
    assert (second.content()["useful"], second.content()["lostSteps"]) == (0, 50)


@pytest.mark.parametrize("record", [None, {"runId": "another"}, {"runId": "a", "useful": "much"}, {"runId": "a"}])
def test_what_is_no_account_of_this_run_is_left_alone(record: dict[str, object] | None) -> None:
    goodput = Goodput("a", Clock())
    goodput.take_over(record)
    goodput.begin(None)
    assert goodput.content()["since"] == 1000
