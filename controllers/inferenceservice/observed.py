"""What the plan of an InferenceService looks at: its children, the pods of both parts, and what the routers report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from controllers.inferenceservice.builders import ROUTER, part_name
from controllers.inferenceservice.models import TRAINING_JOB, sources
from controllers.runtime.controller import Caches
from controllers.runtime.objects import (
    COMPONENT,
    CONFIG_MAP,
    DEPLOYMENT,
    HPA,
    NETWORK_POLICY,
    PDB,
    POD,
    REPORT,
    SERVICE,
    Key,
    Manifest,
    ObjectType,
    by_name,
)
from controllers.runtime.podstate import is_finished, is_ready, is_terminating
from headrace.api import InferenceService
from headrace.api.chain import PREDICTOR, RouterReport
from headrace.api.routing import CANARY, SHADOW

CHILDREN: tuple[ObjectType, ...] = (CONFIG_MAP, SERVICE, NETWORK_POLICY, PDB, DEPLOYMENT, HPA)
"""Types whose objects belong to one InferenceService alone; what is no longer wanted of them is deleted."""


@dataclass(frozen=True, slots=True)
class Part:
    """The routers, the predictors, the canary or the shadow.

    Attributes:
        component: The label of its pods.
        deployment: None while there is none.
        pods: Those that run or are to run, by name; not those on their way out.
    """

    component: str
    deployment: Manifest | None = None
    pods: Sequence[Manifest] = ()

    @property
    def ready(self) -> int:
        """Pods that are ready."""
        return sum(map(is_ready, self.pods))


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything the plan reads.

    Attributes:
        router: The pods in front.
        predictor: The pods of the primary model.
        canary: The pods of the canary.
        shadow: The pods of the shadow.
        reports: What the ready routers say, by pod name; those that say nothing readable are left out.
        children: Objects owned by the resource, by type.
        jobs: TrainingJobs whose model the spec asks for, by name; those that exist.
    """

    router: Part = Part(ROUTER)
    predictor: Part = Part(PREDICTOR)
    canary: Part = Part(CANARY)
    shadow: Part = Part(SHADOW)
    reports: tuple[RouterReport, ...] = ()
    children: Mapping[ObjectType, Sequence[Manifest]] | None = None
    jobs: Mapping[str, Manifest] = field(default_factory=dict)


def gather(service: InferenceService, caches: Caches) -> Observed:
    """Read the caches."""
    namespace, uid = service.metadata.namespace, service.metadata.uid
    children = {type_: caches.owned(type_, namespace, uid) for type_ in CHILDREN}
    deployments = by_name(children[DEPLOYMENT])
    pods = [pod for pod in caches.owned(POD, namespace, uid) if not is_terminating(pod) and not is_finished(pod)]
    router = Part(ROUTER, deployments.get(service.metadata.name), _of(ROUTER, pods))
    return Observed(
        router=router,
        predictor=_part(service, PREDICTOR, deployments, pods),
        canary=_part(service, CANARY, deployments, pods),
        shadow=_part(service, SHADOW, deployments, pods),
        reports=tuple(report for pod in router.pods if is_ready(pod) and (report := report_of(pod)) is not None),
        children=children,
        jobs=jobs(service, caches),
    )


def jobs(service: InferenceService, caches: Caches) -> dict[str, Manifest]:
    """The TrainingJobs that the spec names."""
    names = {model.training_job_ref.name for _, model in sources(service) if model.training_job_ref is not None}
    namespace = service.metadata.namespace
    found = {name: caches.get(TRAINING_JOB, Key(namespace, name)) for name in sorted(names)}
    return {name: job for name, job in found.items() if job is not None}


def report_of(pod: Manifest) -> RouterReport | None:
    """What a router says about itself; None when it said nothing, or nothing that can be read.

    The process in the pod writes it, so it is trusted no further than the pod is: it tells what to show and what a
    canary's requests came to, and nothing else follows from it.
    """
    text = (pod["metadata"].get("annotations") or {}).get(REPORT)
    if not text:
        return None
    try:
        return RouterReport.model_validate_json(text)
    except ValidationError:
        return None


def _part(
    service: InferenceService, component: str, deployments: Mapping[str, Manifest], pods: Sequence[Manifest]
) -> Part:
    return Part(component, deployments.get(part_name(service, component)), _of(component, pods))


def _of(component: str, pods: Sequence[Manifest]) -> tuple[Manifest, ...]:
    return tuple(pod for pod in pods if pod["metadata"]["labels"].get(COMPONENT) == component)
