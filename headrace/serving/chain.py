"""The chain: ask the steps in order until one answers, and say why each step before it did not.

A step is asked when it is available, has room (`max_concurrency`) and its breaker permits it. It has its own timeout,
and the whole chain has the caller's deadline where there is one. What comes of it decides:

- an answer, or a refusal of the request itself (4xx), is the chain's answer. The caller's mistakes never fall through
  to the next step and say nothing about the health of this one;
- `Unanswered`: the next step is asked.

Only errors and timeouts count against the breaker. A timeout that the caller's own short deadline caused does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from headrace.serving.breaker import Breaker
from headrace.serving.messages import Query, Reply

log = logging.getLogger(__name__)

SPARE = 0.1
"""Part of the caller's remaining time that a step leaves to those after it."""


class Reason(StrEnum):
    """Why a step did not answer."""

    TIMEOUT = "timeout"
    ERROR = "error"
    OVERLOADED = "overloaded"
    OPEN = "open"
    NOT_READY = "not-ready"
    REFUSED = "refused"
    """Of a canary alone: it calls the request wrong, which only the stable model's answer can show to be so."""


class Unanswered(Exception):
    """A step has no answer; `reason` says why, the message tells more."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Step(Protocol):
    """What can answer a request."""

    @property
    def name(self) -> str:
        """Name in headers, metrics and status."""

    @property
    def unavailable(self) -> str:
        """Why there is no use in asking now; empty when there is."""

    async def answer(self, query: Query, deadline: float) -> Reply:
        """The answer, by `deadline` (loop time); a 4xx means that the request is wrong.

        Raises:
            Unanswered: this step has no answer.
        """

    async def metadata(self) -> bytes | None:
        """Body of the model metadata as this step knows it; None where it does not."""


class StepMetrics(Protocol):
    """Where the figures of one step go."""

    def answered(self, seconds: float) -> None:
        """The step answered."""

    def missed(self, reason: Reason, seconds: float | None) -> None:
        """The step did not; `seconds` is None where it was not asked."""


@dataclass(slots=True)
class Guarded:
    """A step with its timeout, its limit and its breaker.

    Attributes:
        timeout: Seconds for one answer.
        limit: Requests in flight.
        breaker: None for a step that cannot fail.
        last_asked: Clock time of the last request, for whoever asks whether there is traffic.
    """

    step: Step
    timeout: float
    limit: int
    breaker: Breaker | None
    metrics: StepMetrics
    in_flight: int = 0
    last_asked: float = 0.0


@dataclass(frozen=True, slots=True)
class Missed:
    """A step that did not answer."""

    step: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """What the chain came to: the answer and its step, or None and the reasons.

    Attributes:
        missed: The steps that did not answer, in order.
    """

    reply: Reply | None
    step: str
    missed: tuple[Missed, ...]


class Chain:
    """The steps of one service in order. Lives on one event loop, whose time `clock` is."""

    def __init__(self, steps: Sequence[Guarded], clock: Callable[[], float]) -> None:
        self.steps = tuple(steps)
        self._clock = clock

    async def ask(self, query: Query, deadline: float | None = None) -> Result:
        """Ask the steps in order, all of them within `deadline` (loop time)."""
        missed: list[Missed] = []
        last = self.steps[-1]
        for guarded in self.steps:
            begun = self._clock()
            until, hurried = begun + guarded.timeout, False
            if deadline is not None:
                mine = begun + (deadline - begun) * (1.0 if guarded is last else 1 - SPARE)
                until, hurried = min(until, mine), mine < until
            asked = False
            try:
                _admit(guarded)
                asked = True
                guarded.last_asked = begun
                reply = await _ask_one(guarded, query, until, hurried, self._clock)
            except Unanswered as why:
                guarded.metrics.missed(why.reason, self._clock() - begun if asked else None)
                missed.append(Missed(guarded.step.name, why.reason, str(why)))
            else:
                guarded.metrics.answered(self._clock() - begun)
                return Result(reply, guarded.step.name, tuple(missed))
        return Result(None, "", tuple(missed))


def _admit(guarded: Guarded) -> None:
    why_not = guarded.step.unavailable
    if why_not:
        raise Unanswered(Reason.NOT_READY, why_not)
    if guarded.in_flight >= guarded.limit:
        raise Unanswered(Reason.OVERLOADED, f"maxConcurrency {guarded.limit} reached")


async def _ask_one(guarded: Guarded, query: Query, until: float, hurried: bool, clock: Callable[[], float]) -> Reply:
    """One call under the step's breaker; `hurried` when `until` is the caller's deadline and not the step's timeout."""
    breaker = guarded.breaker
    permit = None
    if breaker is not None and (permit := breaker.try_acquire()) is None:
        raise Unanswered(Reason.OPEN, "circuit breaker open")
    healthy: bool | None = None
    begun = clock()
    guarded.in_flight += 1
    try:
        async with asyncio.timeout_at(until) as scope:
            reply = await guarded.step.answer(query, until)
        healthy = True if reply.status < 400 else None
    except Unanswered as why:
        if why.reason is Reason.ERROR or (why.reason is Reason.TIMEOUT and not hurried):
            healthy = False
        raise
    except TimeoutError as error:
        if not scope.expired():
            healthy = False
            raise Unanswered(Reason.ERROR, str(error) or "timed out inside") from error
        if not hurried:
            healthy = False
        expiry = "the request's deadline passed" if hurried else f"no answer in {guarded.timeout:g} s"
        raise Unanswered(Reason.TIMEOUT, expiry) from None
    except Exception as error:
        # Whatever a step has wrong, those after it are there to answer.
        healthy = False
        log.exception("step failed", extra={"fields": {"step": guarded.step.name}})
        raise Unanswered(Reason.ERROR, f"{type(error).__name__}: {error}") from error
    finally:
        guarded.in_flight -= 1
        if breaker is not None and permit is not None:
            if healthy is None:
                breaker.release(permit)
            elif healthy:
                breaker.success(permit, clock() - begun)
            else:
                breaker.failure(permit, clock() - begun)
    return reply
