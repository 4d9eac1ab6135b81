"""What a router reports, and how it finds its way back without traffic."""

from __future__ import annotations

from headrace.api.chain import RouterReport
from headrace.api.inferenceservice import CircuitBreaker
from headrace.serving.breaker import Breaker
from headrace.serving.chain import Guarded
from headrace.serving.state import Health
from tests.unit.serving.test_chain import Figures, Scripted, ok


class World:
    """A chain of the predictor and a static step, its clock, and what was reported."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reports: list[RouterReport] = []
        self.predictor = Scripted("predictor", ok)
        config = CircuitBreaker(minimum_number_of_calls=2, permitted_calls_in_half_open_state=2)
        self.breaker = Breaker(config, lambda: self.now)
        self.steps = [
            Guarded(self.predictor, 1.0, 10, self.breaker, Figures()),
            Guarded(Scripted("last", ok), 1.0, 10, None, Figures()),
        ]
        self.health = Health(self.steps, lambda: self.now, self.reports.append)
        self.probes = 0
        self.alive = True

    async def probe(self) -> bool:
        self.probes += 1
        return self.alive

    async def look(self) -> str:
        """One period; returns the states of the steps."""
        await self.health.try_quietly(self.probe)
        self.health.update()
        return " ".join(step.state for step in self.reports[-1].steps)

    def open(self) -> None:
        for _ in range(2):
            permit = self.breaker.try_acquire()
            assert permit is not None
            self.breaker.failure(permit)


async def test_states_of_the_steps_and_a_report_only_when_they_change() -> None:
    world = World()
    assert await world.look() == "Answering Standby"
    assert await world.look() == "Answering Standby"
    assert len(world.reports) == 1
    world.predictor.unavailable = "no replicas"
    assert await world.look() == "NotReady Answering"
    assert (world.reports[-1].answering, world.reports[-1].steps[0].reason) == ("last", "no replicas")
    world.predictor.unavailable = ""
    world.open()
    assert await world.look() == "Open Answering"


async def test_probes_close_a_breaker_whose_wait_is_over_when_nobody_asks() -> None:
    world = World()
    world.open()
    world.now += 4
    assert await world.look() == "Open Answering"
    assert world.probes == 0
    world.now += 2
    assert await world.look() == "Answering Standby"
    assert world.probes == 2


async def test_probes_that_fail_begin_another_wait() -> None:
    world = World()
    world.open()
    world.alive = False
    world.now += 6
    assert await world.look() == "Open Answering"
    world.alive = True
    world.now += 4
    assert await world.look() == "Open Answering"
    world.now += 2
    assert await world.look() == "Answering Standby"


async def test_no_probe_where_there_is_traffic_or_nothing_to_probe() -> None:
    world = World()
    world.open()
    world.now += 6
    world.steps[0].last_asked = world.now
    assert await world.look() == "Open Answering"
    world.now += 2
    world.predictor.unavailable = "no replicas"
    assert await world.look() == "NotReady Answering"
    assert world.probes == 0
    world.predictor.unavailable = ""
    assert await world.look() == "Answering Standby"
