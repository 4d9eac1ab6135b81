"""All workers of a group get nodes, or none: the cluster's own gang scheduling, where it is served.

Kubernetes has it in API group scheduling.k8s.io, in shapes that changed from release to release: a Workload that lists
groups (1.35, v1alpha1) and a PodGroup of its own (1.36 v1alpha2, 1.37 v1alpha3 and v1beta1). What is served is asked
once, when a process begins to lead. The job owns one such object, its pods name it, and the scheduler binds all or
none of them. Where nothing is served, `gangqueue` makes a group's pods only when they fit.

Jobs with Kueue's label are queued by Kueue, as one of its groups of plain pods: a scheduling gate holds them until
it admits the whole group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from controllers.runtime.client import ApiClient, ApiError
from controllers.runtime.objects import Manifest, ObjectType
from controllers.runtime.podstate import Problem, last_line, name_of
from headrace.api.trainingjob import TrainingJob

GROUP = "scheduling.k8s.io"
MEMBERS = "workers"
"""Name of the group inside a Workload."""
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_GROUP = "kueue.x-k8s.io/pod-group-name"
KUEUE_COUNT = "kueue.x-k8s.io/pod-group-total-count"
KUEUE_RETRIABLE = "kueue.x-k8s.io/retriable-in-group"
"""Pods that are `false` here are not waited for when they failed: an attempt that ended gives its quota back."""
KUEUE_GATE = "kueue.x-k8s.io/admission"


@dataclass(frozen=True, slots=True)
class GangAPI:
    """One shape of the cluster's gang scheduling."""

    type: ObjectType

    @property
    def _is_workload(self) -> bool:
        return self.type.kind == "Workload"

    def manifest(self, job: TrainingJob) -> Manifest:
        """The object that stands for the job's workers."""
        policy = {"gang": {"minCount": job.spec.min_workers or job.spec.num_workers}}
        spec: Manifest = {"schedulingPolicy": policy}
        if self._is_workload:
            controller = {"apiGroup": job.info.group, "kind": job.info.kind, "name": job.metadata.name}
            spec = {"controllerRef": controller, "podGroups": [{"name": MEMBERS, "policy": policy}]}
        elif (priority := job.spec.priority_class_name) and not priority.startswith("system-"):
            spec["priorityClassName"] = priority  # those of the system are above what a group may have
        return {
            "apiVersion": self.type.api_version,
            "kind": self.type.kind,
            "metadata": {"name": gang_name(job), "namespace": job.metadata.namespace},
            "spec": spec,
        }

    def reference(self, job: TrainingJob) -> Manifest:
        """The field of a pod's spec that makes it one of the group."""
        if self._is_workload:
            return {"workloadRef": {"name": gang_name(job), "podGroup": MEMBERS}}
        return {"schedulingGroup": {"podGroupName": gang_name(job)}}


APIS: Sequence[GangAPI] = tuple(
    GangAPI(ObjectType(f"{GROUP}/{version}", kind, plural))
    for version, kind, plural in (
        ("v1", "PodGroup", "podgroups"),
        ("v1beta1", "PodGroup", "podgroups"),
        ("v1alpha3", "PodGroup", "podgroups"),
        ("v1alpha2", "PodGroup", "podgroups"),
        ("v1alpha1", "Workload", "workloads"),
    )
)
"""The shapes that are known, the best one first."""


def gang_name(job: TrainingJob) -> str:
    """Name of the object that stands for the group: the job's own."""
    return job.metadata.name


async def discover(client: ApiClient) -> GangAPI | None:
    """The best shape that the API server serves, or None.

    Raises:
        ApiError: The API server does not say.
    """
    try:
        group = await client.get(f"/apis/{GROUP}")
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    served = {item["version"] for item in group["versions"]}
    for api in APIS:
        version = api.type.api_version.rpartition("/")[2]
        if version in served:
            resources = await client.get(f"/apis/{GROUP}/{version}")
            if api.type.plural in {item["name"] for item in resources["resources"]}:
                return api
    return None


def is_group(job: TrainingJob) -> bool:
    """Whether there is a group at all: a lone worker is whole by itself."""
    return job.spec.num_workers > 1


def kueue_queue(job: TrainingJob) -> str | None:
    """The LocalQueue of Kueue that the job is to wait in."""
    return job.metadata.labels.get(KUEUE_QUEUE)


def member(job: TrainingJob, pod: Manifest, api: GangAPI | None, attempt: int) -> Manifest:
    """A worker as one of its group.

    Args:
        job: The resource.
        pod: The worker.
        api: The cluster's gang scheduling; None where there is none.
        attempt: Attempt that the pod is made for: to Kueue each is a group of its own.
    """
    spec, metadata = pod["spec"], pod["metadata"]
    if api is not None and is_group(job):
        spec = {**spec, **api.reference(job)}
    if queue := kueue_queue(job):
        labels = {KUEUE_QUEUE: queue}
        annotations: Mapping[str, str] = {}
        if is_group(job):
            labels[KUEUE_GROUP] = f"{job.metadata.name}-{attempt}"
            annotations = {KUEUE_COUNT: str(job.spec.num_workers), KUEUE_RETRIABLE: "false"}
        metadata = {
            **metadata,
            "labels": {**metadata["labels"], **labels},
            "annotations": {**metadata["annotations"], **annotations},
        }
    return {**pod, "spec": spec, "metadata": metadata}


def waits_for_kueue(job: TrainingJob, pods: Collection[Manifest]) -> Problem | None:
    """The pods are held until Kueue admits the group; or None."""
    held = [pod for pod in pods if any(gate["name"] == KUEUE_GATE for gate in pod["spec"].get("schedulingGates") or ())]
    if not held:
        return None
    return Problem(
        "WaitingForKueue",
        f"{len(held)} of {job.spec.num_workers} workers wait until Kueue admits the group to LocalQueue "
        f"{kueue_queue(job)!r}; why not yet: kubectl get workloads.kueue.x-k8s.io -n {job.metadata.namespace}. The "
        "queue must exist in this namespace and its ClusterQueue must have room",
    )


def not_scheduled(group: Manifest | None) -> str | None:
    """What the scheduler says of a group that it cannot place, or None."""
    for item in (group or {}).get("status", {}).get("conditions") or ():
        if item["type"] in ("PodGroupScheduled", "PodGroupInitiallyScheduled") and item["status"] == "False":
            return last_line(item.get("message") or item.get("reason") or "no message", 600)
    return None


def is_ignored(api: GangAPI | None, job: TrainingJob, pods: Collection[Manifest]) -> str | None:
    """Name of a pod from which the API server dropped the reference to its group, or None.

    It serves the objects and ignores the field of the pods where the feature gate of the scheduler's half is off.
    """
    if api is None or not is_group(job):
        return None
    (field,) = api.reference(job)
    return next((name_of(pod) for pod in pods if field not in pod["spec"]), None)
