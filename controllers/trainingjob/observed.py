"""Gather: the workers of a job and the nodes they sit on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from controllers.runtime.controller import Caches
from controllers.runtime.objects import NODE, POD, Key, Manifest, by_name
from controllers.runtime.podstate import node_of
from controllers.trainingjob.gang import GangAPI
from headrace.api.trainingjob import TrainingJob


@dataclass(frozen=True, slots=True)
class Admission:
    """What the queue of gangs says of a job.

    Attributes:
        admitted: It may have its workers.
        reason: CamelCase reason why not.
        message: The same in words, and what would change it.
        preempted_by: The job of higher priority that it has to make room for; empty where it need not.
    """

    admitted: bool
    reason: str = ""
    message: str = ""
    preempted_by: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """All that the plan of a TrainingJob looks at.

    Attributes:
        pods: Pods of the job by name, whatever their attempt.
        nodes: Nodes of these pods by name, as far as they exist.
        cluster: Every node, for placement and for saying why a worker finds none.
        patience: How old an attempt may get before it is said how far its start is.
        admission: What the queue of gangs says; None where the scheduler itself starts them whole.
        gang_api: The cluster's own gang scheduling; None where there is none.
    """

    pods: Mapping[str, Manifest] = field(default_factory=dict)
    nodes: Mapping[str, Manifest] = field(default_factory=dict)
    cluster: Sequence[Manifest] = ()
    patience: timedelta = timedelta(seconds=3)
    admission: Admission | None = None
    gang_api: GangAPI | None = None


def gather(
    job: TrainingJob, caches: Caches, gang_api: GangAPI | None = None, admission: Admission | None = None
) -> Observed:
    """Read the caches; no manifest is copied or changed."""
    pods = by_name(caches.owned(POD, job.metadata.namespace, job.metadata.uid))
    nodes: dict[str, Manifest] = {}
    for name in {node_of(pod) for pod in pods.values()} - {""}:
        node = caches.get(NODE, Key("", name))
        if node is not None:
            nodes[name] = node
    return Observed(pods, nodes, caches.all(NODE), caches.patience(), admission, gang_api)
