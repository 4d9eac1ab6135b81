"""The router: one address for a service, answered by the first step of its chain that can."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.api.chain import PREDICTOR, REASON_HEADER, STEP_HEADER, RemotePredictor
from headrace.api.chain import Chain as ChainSpec
from headrace.api.inferenceservice import FallbackReason, FallbackStep, ModelSource, StepOptions
from headrace.api.inferenceservice import RequestLog as RequestLogSpec
from headrace.api.meta import parse_duration
from headrace.api.routing import ARM_HEADER
from headrace.serving.breaker import Breaker, State
from headrace.serving.chain import Chain, Guarded, Missed, Reason, Result, Step
from headrace.serving.client import Client
from headrace.serving.cpus import cpu_limit
from headrace.serving.drain import Leaving, Times, serve
from headrace.serving.http import ProtocolServer, error, respond
from headrace.serving.inside import InsideUpstream
from headrace.serving.last_answer import LastAnswerStep
from headrace.serving.messages import Query
from headrace.serving.metrics import RouterMetrics
from headrace.serving.pool import ModelPool
from headrace.serving.replicas import PERIOD, Resolve, resolve
from headrace.serving.request_log import RequestLog
from headrace.serving.request_table import ParquetSink
from headrace.serving.server import Response
from headrace.serving.source import load_model
from headrace.serving.state import Health, Report
from headrace.serving.steps import LocalStep, StaticStep
from headrace.serving.traffic.control import TrafficControl
from headrace.serving.traffic.upstream import RemoteUpstream
from headrace.storage import Store

log = logging.getLogger(__name__)

CREDENTIALS = Path("/etc/headrace/credentials")
"""Where the Secrets of fallback models are mounted, one folder each."""


_REASONS: dict[FallbackReason, Reason] = {
    "Timeout": Reason.TIMEOUT,
    "Error": Reason.ERROR,
    "Overloaded": Reason.OVERLOADED,
    "Open": Reason.OPEN,
    "NotReady": Reason.NOT_READY,
}
ALWAYS = (Reason.HEDGED, Reason.REFUSED)
"""Reasons that are no failure of the step."""
LOCAL_PATIENCE = 15.0
"""Seconds after the start during which the router is not ready for want of its fallback models alone."""


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """What a router needs beside its chain.

    Attributes:
        traffic: File with where requests go beside the chain (headrace.api.routing.Traffic); None for nowhere.
    """

    port: int = 8080
    host: str | None = None
    grpc_port: int | None = None
    credentials: Path = CREDENTIALS
    times: Times = field(default_factory=Times)
    period: float = PERIOD
    traffic: Path | None = None


class Router:
    """The endpoint of one service.

    Args:
        spec: The chain.
        settings: Where it runs.
        leaving: Whether the process is on its way out.
        report: Told the state of the steps when it changes.
        lookup: DNS.
    """

    def __init__(
        self,
        spec: ChainSpec,
        settings: RouterSettings,
        leaving: Leaving,
        report: Callable[[Report], None] = lambda report: None,
        lookup: Resolve = resolve,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.model_name = spec.name
        self._leaving = leaving
        self._clock = loop.time
        self._started = loop.time()
        self._settings = settings
        self._pools: list[ModelPool] = []
        self._locals: list[LocalStep] = []
        self._keeping: list[LastAnswerStep] = []
        self._client = Client(loop)
        self._lookup = lookup
        self.metrics = RouterMetrics(spec.name, lambda: self._primary.ready)
        primary = spec.predictor
        self._primary: InsideUpstream | RemoteUpstream = (
            self._inside(primary) if primary.model is not None else self._connect(PREDICTOR, primary)
        )
        steps = [self._primary.guarded]
        steps += [self._guard(self._step(spec, fallback), fallback) for fallback in spec.fallback]
        self._chain = Chain(steps, loop.time, _seconds(spec.timeout) if spec.timeout else None)
        self._traffic = TrafficControl(
            settings.traffic,
            self._chain,
            self._connect,
            self.metrics,
            self._reconsider,
            loop.time,
            settings.period,
        )
        self._fixed = {step.step.name for step in steps if isinstance(step.step, StaticStep)}
        self.metrics.split(lambda: self._traffic.percent)
        self.metrics.watch(lambda: (*steps, *self._traffic.steps))
        self._log = self._request_log(spec.request_log)
        self._health = Health(steps, loop.time, report, lambda: self._traffic.report)

    def _request_log(self, asked: RequestLogSpec | None) -> RequestLog | None:
        if asked is None or asked.storage_uri is None:
            return None
        secret = self._settings.credentials / asked.secret_ref.name if asked.secret_ref else None
        # POD_NAME is in every pod; by hand a process has the name of its host.
        writer = os.environ.get("POD_NAME") or socket.gethostname()
        folder = asked.storage_uri
        sink = ParquetSink(self.model_name, lambda: Store.open(folder, secret), writer)
        return RequestLog(self.model_name, sink, asked.percent, _seconds(asked.interval), self.metrics.registry)

    def _guard(self, step: Step, options: StepOptions) -> Guarded:
        name = step.name

        def changed(old: State, new: State) -> None:
            log.warning("circuit breaker changed", extra={"fields": {"step": name, "from": old.name, "to": new.name}})
            self._health.update()

        breaker = None
        if not isinstance(step, (StaticStep, LastAnswerStep)):
            breaker = Breaker(options.circuit_breaker, self._clock, changed)
        reserve = options.reserve if isinstance(options, FallbackStep) else None
        return Guarded(
            step,
            _seconds(options.timeout),
            options.max_concurrency if breaker is not None else 2**31,
            breaker,
            self.metrics.step(name),
            fallback_on=frozenset((*map(_REASONS.__getitem__, options.fallback_on), *ALWAYS)),
            hedge_after=_seconds(options.hedge_after) if options.hedge_after else None,
            reserve=_seconds(reserve) if reserve else 0.0,
        )

    def _connect(self, name: str, target: RemotePredictor) -> RemoteUpstream:
        return RemoteUpstream(
            name,
            target.model_name or self.model_name,
            target,
            self._guard,
            self._client,
            self._reconsider,
            self._lookup,
            self._settings.period,
        )

    @property
    def unit_header(self) -> str:
        """Request header with the unit of an allocation, in lower case; empty for none."""
        return self._traffic.unit_header

    def _reconsider(self) -> None:
        self._health.update()

    def _step(self, spec: ChainSpec, fallback: FallbackStep) -> Step:
        if fallback.last_answer is not None:
            kept = LastAnswerStep(fallback.name, fallback.last_answer, self._clock)
            self._keeping.append(kept)
            return kept
        if fallback.static is not None:
            return StaticStep(fallback.name, spec.name, fallback.static)
        model = fallback.model
        if model is None:
            raise ValueError(f"fallback step {fallback.name!r} has neither a model nor a static response")
        return self._local(fallback.name, model, fallback)

    def _local(self, name: str, model: ModelSource, options: StepOptions) -> LocalStep:
        threads = cpu_limit()
        pool = ModelPool(threads, options.max_concurrency)
        step = LocalStep(
            name,
            self.model_name,
            lambda: load_model(model, self._settings.credentials, threads),
            pool,
            self._reconsider,
        )
        self._pools.append(pool)
        self._locals.append(step)
        return step

    def _inside(self, target: RemotePredictor) -> InsideUpstream:
        if target.model is None:
            raise ValueError("the primary is to run inside the router and has no model")
        step = self._local(PREDICTOR, target.model, target)
        return InsideUpstream(step, self._guard(step, target))

    @property
    def draining(self) -> bool:
        return self._leaving.begun

    def not_ready(self) -> str:
        """Why nothing can answer: it is draining, its models have not been tried yet, or every step says why not."""
        if self.draining:
            return "the server is draining"
        waiting = self._clock() - self._started < LOCAL_PATIENCE
        if waiting and not all(step.attempted.is_set() for step in self._locals):
            return "fallback models are being loaded"
        reasons = []
        for guarded in self._chain.steps:
            why_not = guarded.step.unavailable
            if not why_not:
                return ""
            reasons.append(f"{guarded.step.name}: {why_not}")
        return "; ".join(reasons)

    async def metadata(self) -> bytes | None:
        """Model metadata from the first step that knows it."""
        for guarded in self._chain.steps:
            body = await guarded.step.metadata()
            if body is not None:
                return body
        return None

    async def infer(self, query: Query, patience: float | None) -> Response:
        """The chain's answer, and in the headers who gave it and why not another."""
        deadline = None if patience is None else self._clock() + patience
        arm = self._traffic.choose(query.unit)
        begun = self._clock()
        if arm is None:
            result = await self._chain.ask(query, deadline)
            headers = {STEP_HEADER: result.step} if result.step else {}
        else:
            result = await arm.chain.ask(query, deadline)
            self._traffic.answered(arm, result, self._clock() - begun)
            headers = {ARM_HEADER: arm.name, STEP_HEADER: result.step} if result.step else {ARM_HEADER: arm.name}
        if self._log is not None:
            self._log.offer(query, result.reply, result.step, arm.name if arm else "", self._clock() - begun)
        if result.missed:
            headers[REASON_HEADER] = ",".join(f"{miss.step}={miss.reason.value}" for miss in result.missed)
        if result.reply is None:
            self.metrics.request("", 503)
            return error(503, _nobody(self.model_name, result), {**headers, "Retry-After": "1"})
        if self._keeping and result.reply.status == 200 and result.reply.age is None and result.step not in self._fixed:
            for kept in self._keeping:
                kept.keep(query, result.reply)
        if result.reply.age is not None:
            headers["Age"] = str(result.reply.age)
        if self._traffic.mirror is not None and result.step == PREDICTOR:
            self._traffic.mirror.offer(query, result.reply, self._clock() - begun)
        self.metrics.request(result.step, result.reply.status)
        return respond(result.reply, headers)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What runs beside the requests."""
        return [
            self._primary.run(),
            self._traffic.run(),
            self._health.run(self._settings.period, self._primary.probe),
            *(step.keep_loading(_pause) for step in self._locals),
            *([self._log.run()] if self._log is not None else []),
        ]

    def close(self) -> None:
        """Give back connections and threads."""
        self._primary.close()
        self._client.close()
        for pool in self._pools:
            pool.close()


def _nobody(name: str, result: Result) -> str:
    def tell(miss: Missed) -> str:
        return f"{miss.step}: {miss.reason.value} ({miss.message})"

    return f"no step of {name!r} could answer: " + "; ".join(map(tell, result.missed))


def _seconds(duration: str) -> float:
    return parse_duration(duration).total_seconds()


async def _pause(failures: int) -> None:
    await asyncio.sleep(min(2.0**failures, 30.0))


async def run_router(
    spec: ChainSpec,
    settings: RouterSettings,
    leaving: Leaving,
    report: Callable[[Report], None] = lambda report: None,
) -> None:
    """Serve one chain until asked to leave."""
    router = Router(spec, settings, leaving, report)
    try:
        await serve(
            ProtocolServer(router, router.metrics.registry),
            settings.host,
            settings.port,
            leaving,
            settings.times,
            router.tasks(),
            grpc_port=settings.grpc_port,
        )
    finally:
        router.close()


__all__ = ["PREDICTOR", "Router", "RouterSettings", "run_router"]
