"""Where requests go beside the chain: the canary and the shadow, what routers are told, and what the status says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controllers.inferenceservice import builders, canary, shadow
from controllers.inferenceservice.observed import Observed, Part
from controllers.inferenceservice.rules import PartInput, part_problem
from controllers.runtime.conditions import Wanted
from controllers.runtime.objects import POD, SERVICE, key_of
from controllers.runtime.plan import Annotate, Apply, Event
from controllers.runtime.podstate import Problem
from controllers.runtime.settings import Settings
from controllers.runtime.workload import Workload, content_hash, pod_template, server, template_hash
from headrace.api import InferenceService
from headrace.api.inferenceservice import Predictor
from headrace.api.inferenceservice.traffic import CanaryStatus, ShadowStatus
from headrace.api.meta import parse_duration
from headrace.api.routing import CANARY, SHADOW, TRAFFIC, CanaryRoute, ShadowRoute, Traffic

REPORT_SECONDS = (2.0, 10.0)
"""Least and most seconds between two reports of a router's counts; in between, a third of the analysis' interval."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What there is to do beside the chain.

    Attributes:
        service: The service whose predictor is what it is to be now: a promoted canary's.
        canary: How far the canary is; None where there is none.
        shadow: What came of the mirrored requests; None where there is no shadow.
        applies: Objects of both.
        annotates: What router pods are to be told and were not.
        conditions: Of the status.
        events: Of the way from the last state.
        requeue_after: Time until the next check.
    """

    service: InferenceService
    canary: CanaryStatus | None
    shadow: ShadowStatus | None
    applies: Sequence[Apply]
    annotates: Sequence[Annotate]
    conditions: Sequence[Wanted]
    events: Sequence[Event]
    requeue_after: timedelta | None

    @property
    def status(self) -> dict[str, Any]:
        """Its part of the status."""
        parts = {"canary": self.canary, "shadow": self.shadow}
        return {name: part.manifest() for name, part in parts.items() if part is not None}


def plan(service: InferenceService, observed: Observed, settings: Settings, now: datetime, predictors: int) -> Beside:
    """What to do beside the chain.

    Args:
        service: The resource.
        observed: What is there.
        settings: Of this installation.
        now: The time.
        predictors: Pods asked for of the stable predictor.
    """
    last = service.status
    state = _canary(service, observed, settings, now, predictors)
    summary = _shadow(service, observed, settings, now)
    spec = service.spec
    applies: list[Apply] = []
    if spec.canary is not None and state is not None and canary.runs(state):
        replicas = canary.replicas(spec.canary, state, predictors)
        applies += _objects(service, canary.merged(spec.predictor, spec.canary), settings, CANARY, replicas)
    if spec.shadow is not None:
        tried = shadow.predictor(spec.predictor, spec.shadow)
        applies += _objects(service, tried, settings, SHADOW, spec.shadow.replicas)
    events: list[Event] = []
    waits: list[timedelta] = []
    if spec.canary is not None and state is not None:
        events += canary.events(last.canary if last else None, state)
        waits += [wait for wait in [canary.look_again(spec.canary, state, now)] if wait is not None]
    events += shadow.events(last.shadow if last else None, summary, spec.shadow.percent if spec.shadow else 0)
    waits += [shadow.look_again(summary, now)] if summary is not None else []
    return Beside(
        service=effective(service, state),
        canary=state,
        shadow=summary,
        applies=applies,
        annotates=_annotates(observed, told(service, state, settings)),
        conditions=() if state is None else (_condition(state),),
        events=events,
        requeue_after=min(waits, default=None),
    )


def _canary(
    service: InferenceService, observed: Observed, settings: Settings, now: datetime, predictors: int
) -> CanaryStatus | None:
    spec = service.spec.canary
    if spec is None:
        return None
    before = canary.begin(service, spec, now)
    known = told(service, before, settings)
    stable = builders.predictor(effective(service, before), settings, predictors)
    stable_problem = _problem(observed.predictor, stable, predictors, now)
    wanted = canary.replicas(spec, before, predictors)
    tried = _workload(service, canary.merged(service.spec.predictor, spec), settings, CANARY, wanted)
    given = canary.Given(
        ready=observed.canary.ready,
        problem=_problem(observed.canary, tried, wanted, now),
        stable_replicas=predictors,
        stable=stable_problem,
        updated=stable_problem is None,
        reports=tuple(
            report.traffic
            for report in observed.reports
            if report.traffic is not None and known is not None and report.traffic.revision == known.revision
        ),
        routers=observed.router.ready,
        now=now,
    )
    return canary.decide(service, spec, before, given)


def _shadow(service: InferenceService, observed: Observed, settings: Settings, now: datetime) -> ShadowStatus | None:
    spec = service.spec.shadow
    if spec is None:
        return None
    route = _shadow_route(service, settings)
    tried = _workload(service, shadow.predictor(service.spec.predictor, spec), settings, SHADOW, spec.replicas)
    found = [report.traffic.shadow for report in observed.reports if report.traffic and report.traffic.shadow]
    return shadow.status(
        service.status.shadow if service.status else None,
        route.revision,
        [counts for counts in found if counts.revision == route.revision],
        observed.shadow.ready,
        _problem(observed.shadow, tried, spec.replicas, now),
        now,
    )


def effective(service: InferenceService, state: CanaryStatus | None) -> InferenceService:
    """The service with the predictor that it is to have: the canary's once that is promoted."""
    spec = service.spec.canary
    if spec is None or not canary.promoted(state):
        return service
    return _with(service, canary.merged(service.spec.predictor, spec))


def told(service: InferenceService, state: CanaryStatus | None, settings: Settings) -> Traffic | None:
    """What the routers are to be told; None for nothing."""
    spec = service.spec
    running = spec.canary is not None and state is not None and canary.runs(state)
    if not running and spec.shadow is None:
        return None
    third = REPORT_SECONDS[1]
    if running and spec.canary is not None:
        third = parse_duration(spec.canary.analysis.interval).total_seconds() / 3
    found = Traffic(
        revision="",
        unit_header=spec.allocation.unit_header if spec.allocation else "",
        report_seconds=min(max(third, REPORT_SECONDS[0]), REPORT_SECONDS[1]),
        canary=_canary_route(service, state, settings) if running and state is not None else None,
        shadow=_shadow_route(service, settings) if spec.shadow is not None else None,
    )
    return found.model_copy(update={"revision": content_hash(found.manifest())})


def _canary_route(service: InferenceService, state: CanaryStatus, settings: Settings) -> CanaryRoute | None:
    spec = service.spec
    if spec.canary is None:
        return None
    remote = builders.remote(_with(service, canary.merged(spec.predictor, spec.canary)), settings, CANARY)
    return CanaryRoute(
        **{name: getattr(remote, name) for name in type(remote).model_fields},
        percent=state.percent,
        # Each canary meets other units first.
        salt=f"{service.metadata.namespace}/{service.metadata.name}/{state.revision}",
    )


def _shadow_route(service: InferenceService, settings: Settings) -> ShadowRoute:
    spec = service.spec.shadow
    assert spec is not None, "there is a shadow"
    tried = shadow.predictor(service.spec.predictor, spec)
    remote = builders.remote(_with(service, tried), settings, SHADOW)
    found = ShadowRoute(
        **{name: getattr(remote, name) for name in type(remote).model_fields},
        percent=spec.percent,
        revision="",
        absolute_tolerance=spec.tolerance.absolute,
        relative_tolerance=spec.tolerance.relative,
    )
    # Another model is another shadow, though its address stays.
    model = tried.model_dump(mode="json", by_alias=True, exclude_defaults=True, include={"model", "resources", "env"})
    return found.model_copy(update={"revision": content_hash([found.manifest(), model])})


def waits(part: str, why: str) -> dict[str, Any]:
    """The status of a canary or a shadow whose model is not there yet."""
    if part == CANARY:
        return CanaryStatus(phase="Starting", summary="Starting", message=why).manifest()
    return ShadowStatus(summary="0/0", problem=why).manifest()


def _with(service: InferenceService, predictor: Predictor) -> InferenceService:
    return service.model_copy(update={"spec": service.spec.model_copy(update={"predictor": predictor})})


def _objects(
    service: InferenceService, predictor: Predictor, settings: Settings, component: str, replicas: int
) -> tuple[Apply, ...]:
    return (
        Apply(SERVICE, builders.predictor_service(service, component)),
        *server(_workload(service, predictor, settings, component, replicas)),
    )


def _workload(
    service: InferenceService, predictor: Predictor, settings: Settings, component: str, replicas: int
) -> Workload:
    return builders.predictor(_with(service, predictor), settings, replicas, component)


def _problem(part: Part, workload: Workload, wanted: int, now: datetime) -> Problem | None:
    return part_problem(PartInput(part, wanted, template_hash(pod_template(workload)), now))


def _annotates(observed: Observed, traffic: Traffic | None) -> tuple[Annotate, ...]:
    """Tell each router what it was not told yet."""
    text = None if traffic is None else traffic.model_dump_json(by_alias=True, exclude_none=True)
    return tuple(
        Annotate(POD, key_of(pod), pod["metadata"].get("uid", ""), {TRAFFIC: text})
        for pod in observed.router.pods
        if (pod["metadata"].get("annotations") or {}).get(TRAFFIC) != text
    )


def _condition(state: CanaryStatus) -> Wanted:
    match state.phase:
        case "Promoted":
            return Wanted("Promoted", True, "Promoted", state.message)
        case "RolledBack":
            return Wanted("Promoted", False, "RolledBack", f"the stable predictor answers: {state.message}")
    # Figures change with each check and are in status.canary.
    return Wanted("Promoted", None, state.phase, f"the canary gets {state.percent} % of the requests")
