"""The chain: ask the steps in order until one answers, and say why each step before it did not.

A step is asked when it is available, has room (`max_concurrency`) and its breaker permits it. It has its own timeout,
and the whole chain has the caller's deadline where there is one. What comes of it decides:

- an answer, or a refusal of the request itself (4xx), is the chain's answer. The caller's mistakes never fall through
  to the next step and say nothing about the health of this one;
- `Unanswered`: the next step is asked, where the step's `fallback_on` has the reason.

Only errors and timeouts count against the breaker. A timeout that the caller's own short deadline caused does not.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from headrace.serving.breaker import Breaker
from headrace.serving.messages import Query, Reply

log = logging.getLogger(__name__)

SPARE = 0.1
"""Part of the remaining time that a step leaves to those after it, where they reserve less."""


class Reason(StrEnum):
    """Why a step did not answer."""

    TIMEOUT = "timeout"
    ERROR = "error"
    OVERLOADED = "overloaded"
    OPEN = "open"
    NOT_READY = "not-ready"
    HEDGED = "hedged"
    """It was silent for its `hedgeAfter`, and the next step answered first. It says nothing about its health."""
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
        fallback_on: Reasons of this step for which the next is asked; any other ends the request.
        hedge_after: Seconds of silence after which the next step is asked beside this one; None for never.
        reserve: Seconds of a deadline that the steps before leave to this one.
        last_asked: Clock time of the last request, for whoever asks whether there is traffic.
    """

    step: Step
    timeout: float
    limit: int
    breaker: Breaker | None
    metrics: StepMetrics
    in_flight: int = 0
    last_asked: float = 0.0
    fallback_on: frozenset[Reason] = frozenset(Reason)
    hedge_after: float | None = None
    reserve: float = 0.0


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
    """The steps of one service in order. Lives on one event loop, whose time `clock` is.

    Args:
        steps: At least one.
        clock: Loop time.
        timeout: Seconds for the whole answer, where the caller gives no less; None for as long as the steps take.
    """

    def __init__(self, steps: Sequence[Guarded], clock: Callable[[], float], timeout: float | None = None) -> None:
        self.steps = tuple(steps)
        self._clock = clock
        self._timeout = timeout
        self._reserves = tuple(sum(later.reserve for later in self.steps[i + 1 :]) for i in range(len(self.steps)))

    def after(self, first: Guarded) -> Chain:
        """This chain with another step before it, which leaves half of a deadline to the steps that were there."""
        made = Chain((first, *self.steps), self._clock, self._timeout)
        made._reserves = (math.inf, *self._reserves)
        return made

    async def ask(self, query: Query, deadline: float | None = None) -> Result:
        """Ask the steps in order, all of them within `deadline` (loop time)."""
        if self._timeout is not None:
            latest = self._clock() + self._timeout
            deadline = latest if deadline is None else min(deadline, latest)
        return await self._from(0, query, deadline)

    async def _from(self, index: int, query: Query, deadline: float | None) -> Result:
        """The answer of the steps from this one on."""
        missed: list[Missed] = []
        for i in range(index, len(self.steps)):
            guarded = self.steps[i]
            if guarded.hedge_after is not None and i + 1 < len(self.steps):
                rest = await self._hedged(i, guarded.hedge_after, query, deadline)
                return Result(rest.reply, rest.step, (*missed, *rest.missed))
            found = await self._one(i, query, deadline)
            if isinstance(found, Reply):
                return Result(found, guarded.step.name, tuple(missed))
            missed.append(found)
            if found.reason not in guarded.fallback_on:
                break
        return Result(None, "", tuple(missed))

    async def _one(self, index: int, query: Query, deadline: float | None) -> Reply | Missed:
        """One step's answer, or why it has none."""
        guarded = self.steps[index]
        begun = self._clock()
        until, hurried = begun + guarded.timeout, False
        if deadline is not None:
            mine = deadline - self._kept(index, deadline - begun)
            until, hurried = min(until, mine), mine < until
        asked = False
        try:
            _admit(guarded)
            asked = True
            guarded.last_asked = begun
            reply = await _ask_one(guarded, query, until, hurried, self._clock)
        except Unanswered as why:
            guarded.metrics.missed(why.reason, self._clock() - begun if asked else None)
            return Missed(guarded.step.name, why.reason, str(why))
        guarded.metrics.answered(self._clock() - begun)
        return reply

    def _kept(self, index: int, left: float) -> float:
        """Seconds of those left that a step leaves to the steps after it: what they reserve, at most half."""
        if index == len(self.steps) - 1:
            return 0.0
        return max(SPARE * left, min(self._reserves[index], left / 2))

    async def _hedged(self, index: int, after: float, query: Query, deadline: float | None) -> Result:
        """One step, and the steps after it beside it when it is silent for so long; the first answer counts."""
        name = self.steps[index].step.name
        own = asyncio.ensure_future(self._one(index, query, deadline))
        rest: asyncio.Future[Result] | None = None
        try:
            await asyncio.wait({own}, timeout=after)
            if not own.done():
                rest = asyncio.ensure_future(self._from(index + 1, query, deadline))
                await asyncio.wait({own, rest}, return_when=asyncio.FIRST_COMPLETED)
                if not own.done() and rest.result().reply is not None:
                    self.steps[index].metrics.missed(Reason.HEDGED, None)
                    beside = Missed(
                        name, Reason.HEDGED, f"no answer in {after:g} s, so the next step was asked beside it"
                    )
                    return Result(rest.result().reply, rest.result().step, (beside, *rest.result().missed))
            found = await own
            if isinstance(found, Reply):
                return Result(found, name, ())
            if found.reason not in self.steps[index].fallback_on:
                return Result(None, "", (found,))
            later = await (rest if rest is not None else self._from(index + 1, query, deadline))
            return Result(later.reply, later.step, (found, *later.missed))
        finally:
            own.cancel()
            if rest is not None:
                rest.cancel()


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
