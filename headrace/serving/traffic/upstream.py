"""The replicas of one model, from their DNS name to the step of a chain that asks them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.api.chain import RemotePredictor
from headrace.api.meta import parse_duration
from headrace.api.routing import CANARY, SHADOW
from headrace.serving.balancer import Balancer, Readiness
from headrace.serving.chain import Guarded, Reason, Step, Unanswered
from headrace.serving.client import Client
from headrace.serving.messages import Query, Reply
from headrace.serving.remote import RemoteStep
from headrace.serving.replicas import ReplicaWatch, Resolve


class CanaryStep(RemoteStep):
    """The replicas of a canary.

    What the primary refuses is the caller's mistake. What a canary refuses may as well be the canary's: it goes on to
    the primary, whose answer shows whose mistake it is.
    """

    name = CANARY

    async def answer(self, query: Query, deadline: float) -> Reply:
        reply = await super().answer(query, deadline)
        if reply.status >= 400:
            raise Unanswered(Reason.REFUSED, f"HTTP {reply.status}")
        return reply


class ShadowStep(RemoteStep):
    """The replicas of a shadow."""

    name = SHADOW


class RemoteUpstream:
    """Replicas of a model.

    Args:
        name: Name of the step: the primary's, the canary's or the shadow's.
        model_name: Name of the model that the replicas serve.
        target: Where they are and how they are asked.
        guard: Puts a step behind its timeout, its limit and its breaker.
        client: HTTP client.
        on_change: Told when a replica comes, goes, or changes its readiness.
        lookup: DNS.
        period: Seconds between two looks.
    """

    def __init__(
        self,
        name: str,
        model_name: str,
        target: RemotePredictor,
        guard: Callable[[Step, RemotePredictor], Guarded],
        client: Client,
        on_change: Callable[[], None],
        lookup: Resolve,
        period: float,
    ) -> None:
        clock = asyncio.get_running_loop().time
        self._client = client
        self._balancer = Balancer(clock, target.outlier_detection)
        made = {CANARY: CanaryStep, SHADOW: ShadowStep}.get(name, RemoteStep)
        step = made(model_name, client, self._balancer, parse_duration(target.timeout).total_seconds())
        self.guarded = guard(step, target)
        if name == CANARY:
            # Whatever a canary has, the primary is there to answer.
            self.guarded.fallback_on = frozenset(Reason)
        self._watch = ReplicaWatch(target.host, target.port, self._balancer, client, on_change, clock, lookup, period)

    @property
    def ready(self) -> int:
        """Replicas that are ready."""
        return sum(replica.readiness is Readiness.READY for replica in self._balancer.replicas)

    async def run(self) -> None:
        """Keep the list of replicas until cancelled."""
        await self._watch.run()

    async def probe(self) -> bool:
        """Whether any replica says now that it is ready."""
        found = await asyncio.gather(*map(self._watch.probe, list(self._balancer.replicas)))
        return Readiness.READY in found

    def close(self) -> None:
        """Give back idle connections."""
        for replica in self._balancer.replicas:
            self._client.forget(replica.address)
