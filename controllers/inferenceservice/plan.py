"""The plan of an InferenceService: its children, in which order they change, its status, and what is worth an Event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from controllers.inferenceservice import builders, models, traffic
from controllers.inferenceservice.events import transitions
from controllers.inferenceservice.observed import CHILDREN, Observed, Part
from controllers.inferenceservice.rules import (
    FALLBACK_ANSWERING,
    REPORT_AFTER,
    ROLLING_OUT,
    ROLLOUT_STALLED,
    UNSCHEDULABLE,
    PartInput,
    WholeInput,
    not_ready,
    part_problem,
    silent_for,
    trusted_again,
    unavailable,
)
from controllers.inferenceservice.steps import merge
from controllers.inferenceservice.traffic import Beside
from controllers.runtime.conditions import Wanted, conditions
from controllers.runtime.errors import WaitError
from controllers.runtime.namespace import STORAGE_SECRET, namespace_objects
from controllers.runtime.objects import COMPONENT, CONFIG_MAP, DEPLOYMENT, HPA, SERVICE, Manifest, key_of
from controllers.runtime.plan import Apply, Delete, Plan
from controllers.runtime.podstate import Problem, is_terminating, lacks_secret
from controllers.runtime.settings import Settings
from controllers.runtime.workload import Workload, pod_template, server, template_hash
from headrace.api import InferenceService
from headrace.api.chain import PREDICTOR
from headrace.api.inferenceservice import ResolvedModel

LOOK_FOR_JOB = timedelta(seconds=30)
"""Pause before the next look while a canary or a shadow waits for a TrainingJob."""
LOOK_FOR_SECRET = timedelta(seconds=10)
"""Pause before the next look while pods say that the default storage's Secret is gone: nothing tells that it came."""


@dataclass(frozen=True, slots=True)
class _Order:
    """Which of the two Deployments must wait for the other's rolling update; at most one does."""

    router: PartInput
    predictor: PartInput


def plan(service: InferenceService, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """What to do about the service."""
    if service.metadata.deletion_timestamp is not None:
        return Plan()  # the children go with it
    service, pins, waiting = _resolved(service, observed.jobs)
    beside = traffic.plan(service, observed, settings, now, _predictors(service, observed.predictor))
    service = beside.service
    chain = builders.chain_config_map(service, settings)
    router = builders.router(service, settings, chain["metadata"]["name"])
    predictor = builders.predictor(service, settings, _predictors(service, observed.predictor))
    order = _order(service, observed, router, predictor, now)
    wanted = (*_children(service, chain, router, predictor), *beside.applies)
    held = {
        workload.name for workload, part in ((router, order.router), (predictor, order.predictor)) if part.waits_for
    }
    status, requeue_after = _status(service, observed, settings, order, beside, now)
    if pins:
        status["models"] = [pin.manifest() for pin in pins]
    status |= waiting
    every_pod = (*observed.router.pods, *observed.predictor.pods, *observed.canary.pods, *observed.shadow.pods)
    lost = any(lacks_secret(pod, STORAGE_SECRET) for pod in every_pod)
    return Plan(
        applies=(
            *_namespace(service, settings, lost=lost),
            *(item for item in wanted if item.type != DEPLOYMENT or item.manifest["metadata"]["name"] not in held),
        ),
        deletes=_unwanted(observed, wanted, rolling=order.router.rolling or order.router.part.deployment is None),
        status=status,
        events=(*transitions(service.status, status), *beside.events),
        requeue_after=_soonest(
            [requeue_after, beside.requeue_after, LOOK_FOR_SECRET if lost else None, LOOK_FOR_JOB if waiting else None]
        ),
        annotates=beside.annotates,
        labels={"answering": status["answering"]},
    )


def _resolved(
    service: InferenceService, jobs: Mapping[str, Manifest]
) -> tuple[InferenceService, tuple[ResolvedModel, ...], dict[str, Any]]:
    """The service with the models of TrainingJobs found, and the status of what waits for one.

    A canary or a shadow whose job has not succeeded is left out until it has: the service goes on without it.

    Raises:
        WaitError: the predictor or a fallback step waits.
    """
    waiting: dict[str, Any] = {}
    for part in ("canary", "shadow"):
        alone = service.model_copy(update={"spec": models.only(service.spec, part)})
        try:
            models.resolve(alone, jobs)
        except WaitError as error:
            service = service.model_copy(update={"spec": service.spec.model_copy(update={part: None})})
            waiting[part] = traffic.waits(part, error.message)
    return (*models.resolve(service, jobs), waiting)


def _predictors(service: InferenceService, part: Part) -> int:
    """Predictor pods to ask for: the spec's number, or what the autoscaler last set.

    An autoscaler's number is applied as it is observed. To leave the field out would be to give it up, and server-side
    apply removes a field that its only owner gives up: the Deployment would fall to the default of one pod.
    """
    spec = service.spec.predictor
    if builders.runs_inside(service):
        return 0
    if spec.max_replicas == spec.min_replicas or part.deployment is None:
        return spec.min_replicas
    current: int = part.deployment["spec"].get("replicas", 1)
    return max(spec.min_replicas, min(current, spec.max_replicas))


def _children(service: InferenceService, chain: Manifest, router: Workload, predictor: Workload) -> tuple[Apply, ...]:
    spec = service.spec.predictor
    children = [Apply(SERVICE, builders.router_service(service)), Apply(CONFIG_MAP, chain), *server(router)]
    if builders.runs_inside(service):
        return tuple(children)
    children[1:1] = [Apply(SERVICE, builders.predictor_service(service)), *server(predictor)]
    if spec.max_replicas > spec.min_replicas:
        children.append(Apply(HPA, builders.autoscaler(service)))
    return tuple(children)


def _namespace(service: InferenceService, settings: Settings, *, lost: bool) -> tuple[Apply, ...]:
    spec = service.spec
    return namespace_objects(
        service.metadata.namespace,
        settings,
        account=None in (spec.router.service_account_name, spec.predictor.service_account_name),
        storage=any(model.secret_ref is None for _, model in models.sources(service))
        or builders.uses_default_storage_in_router(service),
        lost=lost,
    )


def _unwanted(observed: Observed, wanted: Iterable[Apply], *, rolling: bool) -> tuple[Delete, ...]:
    """Children of before that nothing asks for any more.

    Args:
        observed: With the children there are.
        wanted: The children there are to be.
        rolling: Routers of an earlier revision may still start with their own ConfigMap, and ask predictors that those
            of the next one do not need.
    """
    names = {(item.type, item.manifest["metadata"]["name"]) for item in wanted}
    return tuple(
        Delete(type_, key_of(child), child["metadata"]["uid"])
        for type_ in CHILDREN
        for child in (observed.children or {}).get(type_, ())
        if (type_, child["metadata"]["name"]) not in names
        and not is_terminating(child)
        and not (rolling and (type_ == CONFIG_MAP or child["metadata"]["labels"].get(COMPONENT) == PREDICTOR))
    )


def _order(
    service: InferenceService, observed: Observed, router: Workload, predictor: Workload, now: datetime
) -> _Order:
    """Let one Deployment roll at a time, so that a bad release never meets the primary and the fallbacks at once.

    Routers go first. Predictors wait for them, unless they have nothing to lose (none is ready) or the routers' update
    waits for room or has stalled, which a change of the predictors may be the remedy for. Routers wait only for an
    update of the predictors that is under way and goes well: a new fallback must not wait for a broken primary.
    """
    front = PartInput(observed.router, router.replicas, _hash(router), now)
    inside = builders.runs_inside(service)
    behind = PartInput(observed.predictor, service.spec.predictor.min_replicas, _hash(predictor), now, inside=inside)
    front_problem, behind_problem = part_problem(front), part_problem(behind)
    if _changes(behind) and front.rolling and behind.part.ready and not _releases(front_problem):
        behind = replace(behind, waits_for=builders.ROUTER)
    elif _changes(front) and not _changes(behind) and _is(behind_problem, ROLLING_OUT) and front.part.ready:
        front = replace(front, waits_for=PREDICTOR)
    return _Order(front, behind)


def _hash(workload: Workload) -> str:
    return template_hash(pod_template(workload))


def _changes(given: PartInput) -> bool:
    """The Deployment has another template than the spec asks for."""
    deployment = given.part.deployment
    changed = deployment is not None and template_hash(deployment["spec"]["template"]) != given.template
    return changed and not given.inside


def _releases(problem: Problem | None) -> bool:
    return problem is not None and problem.reason in (UNSCHEDULABLE, ROLLOUT_STALLED)


def _is(problem: Problem | None, reason: str) -> bool:
    return problem is not None and problem.reason == reason


def _status(
    service: InferenceService, observed: Observed, settings: Settings, order: _Order, beside: Beside, now: datetime
) -> tuple[dict[str, Any], timedelta | None]:
    answers = merge(observed.reports, [PREDICTOR, *(step.name for step in service.spec.fallback)])
    silent = None if answers.reported or not observed.router.ready else silent_for(observed.router, now)
    whole = WholeInput(
        router=part_problem(order.router),
        predictor=part_problem(order.predictor),
        ready_routers=observed.router.ready,
        answers=answers,
        url=builders.url(service, settings),
        silent_for=silent,
    )
    problem = not_ready(whole)
    who = f"step {answers.answering}" if answers.answering else "a step that the routers do not report"
    told = problem is None or problem.reason == FALLBACK_ANSWERING or unavailable(whole) is not None
    meanwhile = "" if told or not answers.answering else f" ({who} answers meanwhile)"
    wanted = [
        _condition("Ready", problem, "PrimaryAnswers", f"the primary answers at {whole.url}", meanwhile),
        _condition("Available", unavailable(whole), "Answering", f"{who} answers at {whole.url}"),
        _condition("PredictorReady", whole.predictor, *_predictor_is_well(service)),
        _condition("RouterReady", whole.router, "PodsReady", "all router pods asked for are ready"),
        *beside.conditions,
    ]
    status: dict[str, Any] = {
        "observedGeneration": service.metadata.generation,
        "url": whole.url,
        "answering": answers.answering,
        "steps": [step.manifest() for step in answers.steps],
        "predictor": _counts(observed.predictor, _predictors(service, observed.predictor)),
        "router": _counts(observed.router, service.spec.router.replicas),
        **beside.status,
        "conditions": conditions(
            wanted, service.status.conditions if service.status else (), service.metadata.generation, now
        ),
    }
    waits = [trusted_again(order.router), trusted_again(order.predictor)]
    if silent is not None and silent < REPORT_AFTER:
        waits.append(REPORT_AFTER - silent)
    return status, _soonest(waits)


def _predictor_is_well(service: InferenceService) -> tuple[str, str]:
    if builders.runs_inside(service):
        return "InsideRouter", "the model runs inside the routers"
    return "PodsReady", "all predictor pods asked for are ready"


def _condition(type_: str, problem: Problem | None, reason: str, message: str, suffix: str = "") -> Wanted:
    if problem is None:
        return Wanted(type_, True, reason, message)
    return Wanted(type_, False, problem.reason, problem.message + suffix)


def _counts(part: Part, total: int) -> dict[str, Any]:
    ready = part.ready
    return {"ready": ready, "total": total, "summary": f"{ready}/{total}"}


def _soonest(waits: Sequence[timedelta | None]) -> timedelta | None:
    return min((wait for wait in waits if wait is not None), default=None)
