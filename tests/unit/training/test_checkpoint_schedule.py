"""All workers save at the same step, though each has a clock of its own, and asking costs next to nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.training.checkpoint_schedule import Schedule


@dataclass
class Group:
    """Workers in threads, in lockstep; `exchanges` counts their all-reduces."""

    interval: float
    step_seconds: float
    skew: float = 0.0
    interrupt: dict[int, int] = field(default_factory=dict)
    exchanges: int = 0

    def run(self, steps: int) -> tuple[list[list[int]], list[int | None]]:
        """Steps at which each worker saved, and the step at which it saw that it may leave."""
        barrier = threading.Barrier(2)
        slots: list[Sequence[int]] = [(), ()]
        saved: list[list[int]] = [[], []]
        left: list[int | None] = [None, None]

        def work(rank: int) -> None:
            now = [rank * self.skew]
            step = [0]

            def greatest(values: Sequence[int]) -> list[int]:
                slots[rank] = values
                barrier.wait(10)
                result = [max(pair) for pair in zip(*slots, strict=True)]
                if barrier.wait(10) == 0:
                    self.exchanges += 1
                return result

            def told() -> bool:
                return rank in self.interrupt and step[0] >= self.interrupt[rank]

            schedule = Schedule(rank, self.interval, told, greatest, lambda: now[0])
            for number in range(steps):
                step[0] = number
                now[0] += self.step_seconds
                if schedule.due(False):
                    saved[rank].append(number)
                    schedule.begin()
                if told() and schedule.may_leave() and left[rank] is None:
                    left[rank] = number

        threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return saved, left


def test_workers_save_at_the_same_steps_and_seldom_ask() -> None:
    group = Group(interval=30, step_seconds=0.01, skew=12345)
    saved, _ = group.run(10_000)  # 100 s
    assert saved[0] == saved[1]
    gaps = [(b - a) * 0.01 for a, b in zip([0, *saved[0]], saved[0], strict=False)]
    assert len(gaps) == 3
    assert all(30 <= gap <= 31.1 for gap in gaps), gaps
    assert group.exchanges <= 110, "once a second"


def test_every_step_may_be_asked_for() -> None:
    saved, _ = Group(interval=0.001, step_seconds=0.01).run(20)
    assert saved[0] == saved[1] == list(range(20))


def test_a_worker_that_is_told_to_stop_leaves_after_all_have_saved() -> None:
    group = Group(interval=3600, step_seconds=0.1, interrupt={1: 200})
    saved, left = group.run(300)
    assert saved[0] == saved[1]
    assert left[0] is None
    assert left[1] is not None
    assert 200 <= saved[0][0] <= 211, "within the second that an exchange takes at most"
    assert left[1] == saved[0][0]


def test_a_lone_worker_decides_alone() -> None:
    now = [0.0]
    schedule = Schedule(0, 30, lambda: False, None, lambda: now[0])
    assert schedule.may_leave(), "a script that never asks saves nothing"
    now[0] = 29
    assert not schedule.due(False)
    now[0] = 31
    assert not schedule.due(True), "the last one is still being written"
    assert schedule.due(False)
