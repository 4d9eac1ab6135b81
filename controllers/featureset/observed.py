"""What the plan of a FeatureSet looks at: its children, its pods, and what they report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from controllers.featureset.builders import NUMBER, REFRESH, SERVER, server_name
from controllers.runtime.controller import Caches
from controllers.runtime.objects import (
    BATCH_JOB,
    COMPONENT,
    CONFIG_MAP,
    DEPLOYMENT,
    NETWORK_POLICY,
    PDB,
    POD,
    REPORT,
    SERVICE,
    Manifest,
    ObjectType,
    by_name,
)
from controllers.runtime.podstate import is_finished, is_terminating
from headrace.api import FeatureSet
from headrace.api.featureset import RefreshReport, ServerReport
from headrace.api.schema import Model

CHILDREN: tuple[ObjectType, ...] = (CONFIG_MAP, SERVICE, NETWORK_POLICY, PDB, DEPLOYMENT)
"""Types whose objects belong to one FeatureSet alone; what is no longer wanted of them is deleted."""
JOB_NAME = "batch.kubernetes.io/job-name"
"""Label that the Job controller gives to pods."""
M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything the plan reads.

    Attributes:
        deployment: Of the servers; None while there is none.
        servers: Their pods that run or are to run.
        jobs: Refreshes by number.
        refreshers: Pods of refreshes by the name of their Job.
        children: Objects owned by the resource, by type; without Jobs.
    """

    deployment: Manifest | None = None
    servers: Sequence[Manifest] = ()
    jobs: Mapping[int, Manifest] = field(default_factory=dict)
    refreshers: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    children: Mapping[ObjectType, Sequence[Manifest]] = field(default_factory=dict)


def gather(feature_set: FeatureSet, caches: Caches) -> Observed:
    """Read the caches."""
    namespace, uid = feature_set.metadata.namespace, feature_set.metadata.uid
    children = {type_: caches.owned(type_, namespace, uid) for type_ in CHILDREN}
    pods = caches.owned(POD, namespace, uid)
    refreshers: dict[str, list[Manifest]] = {}
    for pod in pods:
        labels = pod["metadata"]["labels"]
        if labels.get(COMPONENT) == REFRESH:
            refreshers.setdefault(labels.get(JOB_NAME, ""), []).append(pod)
    return Observed(
        deployment=by_name(children[DEPLOYMENT]).get(server_name(feature_set)),
        servers=tuple(
            pod
            for pod in pods
            if pod["metadata"]["labels"].get(COMPONENT) == SERVER and not is_terminating(pod) and not is_finished(pod)
        ),
        jobs={
            number: job
            for job in caches.owned(BATCH_JOB, namespace, uid)
            if (number := number_of(job)) and not is_terminating(job)
        },
        refreshers=refreshers,
        children=children,
    )


def number_of(job: Manifest) -> int:
    """Number of a refresh's Job; 0 where it says none."""
    text = (job["metadata"].get("annotations") or {}).get(NUMBER, "")
    return int(text) if text.isdigit() else 0


def server_report(pod: Manifest) -> ServerReport | None:
    """What a server says of itself; it is trusted no further than the pod is."""
    return _report(pod, ServerReport)


def refresh_report(pod: Manifest) -> RefreshReport | None:
    """What a refresh says of itself."""
    return _report(pod, RefreshReport)


def _report(pod: Manifest, model: type[M]) -> M | None:
    text = (pod["metadata"].get("annotations") or {}).get(REPORT)
    if not text:
        return None
    try:
        return model.model_validate_json(text)
    except ValidationError:
        return None
