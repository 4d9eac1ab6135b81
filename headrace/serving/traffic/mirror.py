"""The shadow: a copy of some requests to a second model, whose answers are compared and never given to anybody.

The client has its answer before the shadow is asked. What a shadow may take is bounded: so many requests at a time and
so many bytes of bodies held. A request that comes while there is no room is not mirrored, which is counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

from headrace.api.counts import ShadowCounts
from headrace.api.latency import bucket
from headrace.api.routing import ShadowRoute
from headrace.serving.chain import Chain, Guarded
from headrace.serving.messages import Query, Reply
from headrace.serving.traffic.compare import difference

log = logging.getLogger(__name__)

MAX_HELD = 32 * 1024 * 1024
"""Bytes of requests and answers that wait for the shadow."""
IN_A_THREAD = 64 * 1024
"""Bytes of two answers above which they are compared beside the event loop."""
LOG_SECONDS = 10.0
"""Least time between two log lines about differences."""


class ShadowMetrics(Protocol):
    """Where the figures of a shadow go."""

    def shadow(self, outcome: str, primary_seconds: float | None, seconds: float | None) -> None:
        """Count a mirrored request: same, different, error or dropped."""


class Mirror:
    """Mirrors requests to one shadow.

    Args:
        route: How much, and what counts as a difference.
        guarded: The shadow as a step.
        metrics: Told of each mirrored request.
        clock: Loop time.
        draw: Uniform numbers in [0, 1).
    """

    def __init__(
        self,
        route: ShadowRoute,
        guarded: Guarded,
        metrics: ShadowMetrics,
        clock: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.route = route
        self._chain = Chain([guarded], clock)
        self._metrics = metrics
        self._clock = clock
        self._draw = draw
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = 0
        self._logged = -LOG_SECONDS
        self._requests = self._differing = self._errors = self._dropped = 0
        self._primary: dict[int, int] = {}
        self._shadow: dict[int, int] = {}
        self._example = ""

    def offer(self, query: Query, reply: Reply, seconds: float) -> None:
        """Mirror an answered request, or not; returns at once.

        Args:
            query: The request.
            reply: The primary's answer.
            seconds: How long it took.
        """
        if reply.status != 200 or self._draw() * 100 >= self.route.percent:
            return
        size = len(query.body) + len(reply.body)
        if len(self._tasks) >= self.route.max_concurrency or self._held + size > MAX_HELD:
            self._dropped += 1
            self._metrics.shadow("dropped", None, None)
            return
        self._held += size
        task = asyncio.get_running_loop().create_task(self._ask(query, reply, seconds, size))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, query: Query, reply: Reply, primary_seconds: float, size: int) -> None:
        try:
            begun = self._clock()
            result = await self._chain.ask(query)
            seconds = self._clock() - begun
            self._requests += 1
            if result.reply is None or result.reply.status != 200:
                why = (
                    result.missed[0].message if result.missed else f"HTTP {result.reply.status if result.reply else 0}"
                )
                self._errors += 1
                self._note("the shadow does not answer", why)
                self._metrics.shadow("error", primary_seconds, None)
                return
            found = await self._compare(reply, result.reply)
            for counts, took in ((self._primary, primary_seconds), (self._shadow, seconds)):
                index = bucket(took)
                counts[index] = counts.get(index, 0) + 1
            if found:
                self._differing += 1
                self._note("the shadow answers otherwise", found)
            self._metrics.shadow("different" if found else "same", primary_seconds, seconds)
        except Exception:
            # Nothing of a shadow may reach a client, and nothing of it is lost.
            log.exception("the shadow's answer could not be compared")
            self._errors += 1
        finally:
            self._held -= size

    async def _compare(self, primary: Reply, other: Reply) -> str:
        given = primary, other, self.route.absolute_tolerance, self.route.relative_tolerance
        if len(primary.body) + len(other.body) > IN_A_THREAD:
            return await asyncio.to_thread(difference, *given)
        return difference(*given)

    def _note(self, what: str, detail: str) -> None:
        """Keep the last difference for the report, and log one now and then."""
        self._example = detail[:200]
        if self._clock() - self._logged >= LOG_SECONDS:
            self._logged = self._clock()
            fields = {"detail": detail[:500], **self.counts().manifest()}
            log.warning(
                what, extra={"fields": {name: fields[name] for name in fields if not isinstance(fields[name], dict)}}
            )

    def counts(self) -> ShadowCounts:
        """The counts so far."""
        return ShadowCounts(
            revision=self.route.revision,
            requests=self._requests,
            differing=self._differing,
            errors=self._errors,
            dropped=self._dropped,
            example=self._example,
            primary_latency=dict(self._primary),
            shadow_latency=dict(self._shadow),
        )

    def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
