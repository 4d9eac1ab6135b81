"""How the chain is doing, for the operator: which step is asked first now, and why others are not.

The state follows breakers and replicas, not single requests, so a request that falls back changes nothing here. A
breaker whose wait is over is tried by the next request; where none comes, the primary's readiness endpoint stands in
for the trial calls, so that the state finds its way back without traffic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from headrace.api.chain import PREDICTOR, RouterReport
from headrace.api.counts import TrafficReport
from headrace.api.inferenceservice import StepStatus
from headrace.serving.breaker import State
from headrace.serving.chain import Guarded

log = logging.getLogger(__name__)

Report = RouterReport
QUIET = 1.0
"""Seconds without a request after which probes take the place of trial calls."""


def describe(steps: Sequence[Guarded]) -> Report:
    """The state of every step; the first that can be asked is the one answering."""
    answering = ""
    found = []
    for guarded in steps:
        name = guarded.step.name
        why_not = guarded.step.unavailable
        state: Literal["Answering", "Standby", "Open", "NotReady"]
        reason = ""
        if why_not:
            state, reason = "NotReady", why_not
        elif guarded.breaker is not None and guarded.breaker.state is not State.CLOSED:
            half = guarded.breaker.state is State.HALF_OPEN
            state, reason = "Open", "trial calls decide" if half else "too many errors and timeouts"
        elif answering:
            state = "Standby"
        else:
            state, answering = "Answering", name
        found.append(StepStatus(name=name, state=state, reason=reason))
    return Report(answering=answering, steps=found)


class Health:
    """Reports the state of a chain whenever it is another than before.

    Args:
        steps: The chain's steps.
        clock: Loop time.
        report: Takes the state.
        traffic: What was counted of requests that have more than one place to go.
    """

    def __init__(
        self,
        steps: Sequence[Guarded],
        clock: Callable[[], float],
        report: Callable[[Report], None],
        traffic: Callable[[], TrafficReport | None] = lambda: None,
    ) -> None:
        self._steps = steps
        self._primary = next(guarded for guarded in steps if guarded.step.name == PREDICTOR)
        self._clock = clock
        self._report = report
        self._traffic = traffic
        self._last: Report | None = None

    def update(self) -> None:
        """Report if anything changed."""
        now = describe(self._steps).model_copy(update={"traffic": self._traffic()})
        if now == self._last:
            return
        if self._last is None or now.answering != self._last.answering:
            log.info(
                "answering step changed",
                extra={
                    "fields": {
                        "from": self._last.answering if self._last else "",
                        "to": now.answering,
                        "steps": {step.name: f"{step.state} {step.reason}".strip() for step in now.steps},
                    }
                },
            )
        self._last = now
        self._report(now)

    async def run(self, period: float, probe_primary: Callable[[], Awaitable[bool]]) -> None:
        """Until cancelled: let probes of the primary stand in for trial calls that nobody makes, and report."""
        while True:
            # The first look at the replicas comes before the first report.
            await asyncio.sleep(period)
            await self.try_quietly(probe_primary)
            self.update()

    async def try_quietly(self, probe: Callable[[], Awaitable[bool]]) -> None:
        """Trial calls of the primary by probe, where its breaker waits for some and no request has come lately."""
        guarded = self._primary
        breaker = guarded.breaker
        while breaker is not None and breaker.state is not State.CLOSED and self._quiet(guarded):
            # A trial that cannot succeed would only begin another wait, just when the primary may come back.
            if guarded.step.unavailable or (breaker.state is State.OPEN and not breaker.wait_over):
                return
            permit = breaker.try_acquire()
            if permit is None:
                return
            if await probe():
                breaker.success(permit)
            else:
                breaker.failure(permit)

    def _quiet(self, guarded: Guarded) -> bool:
        return guarded.in_flight == 0 and self._clock() - guarded.last_asked >= QUIET
