"""The queue of gangs of this installation, for clusters without gang scheduling of their own.

It watches all pods that hold a node, in a view that keeps of each only its node, its job and its requests, so that ten
thousand of them are some megabytes; the API server leaves out those that have no node or have ended. From these, the
nodes, the PriorityClasses and the jobs themselves, `fit.Pass` decides who may start. Nothing is stored: which gangs are
admitted is seen from their pods, so a new leader decides as the one before.

A pass is made a moment after something changed (`PAUSE`), whatever the number of changes; jobs for which it says
something new are put on the queue of reconciles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controllers.runtime.cache import CacheSet
from controllers.runtime.objects import NODE, POD, Key, Manifest, ObjectType
from controllers.runtime.store import ObjectStore, controlling_owner
from controllers.trainingjob.fit import Gang, Pass, Shape, amounts
from controllers.trainingjob.gang import KUEUE_QUEUE
from controllers.trainingjob.names import JOB
from controllers.trainingjob.observed import Admission

PAUSE = 0.3
"""Seconds from the first change to the pass that looks at it."""
PRIORITY_CLASS = ObjectType(
    "scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", namespaced=False, managed_only=False
)


def slim(pod: Manifest) -> Manifest:
    """What the queue keeps of a pod: its node, the job that it belongs to, and what it asks for."""
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    owner = controlling_owner(pod)
    ours = owner is not None and owner.api_version == JOB.api_version and owner.kind == JOB.kind
    return {
        "metadata": {name: metadata[name] for name in ("namespace", "name", "uid", "resourceVersion")},
        "node": spec.get("nodeName") or "",
        "job": owner.uid if ours and owner is not None else "",
        "requests": pod_requests(spec),
    }


BOUND_POD = ObjectType(
    POD.api_version,
    POD.kind,
    POD.plural,
    managed_only=False,
    view="bound",
    fields="spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed",
    reduce=slim,
)
"""Pods that hold a node."""


def pod_requests(spec: Manifest) -> dict[str, float]:
    """What a pod reserves: the sum of its containers, or its largest init container, and its overhead.

    As the scheduler counts it; an init container that stays (restartPolicy Always) counts with the containers.
    """
    total: dict[str, float] = {}
    largest: dict[str, float] = {}
    for container in spec.get("containers") or ():
        _add(total, _requests(container))
    for container in spec.get("initContainers") or ():
        asked = _requests(container)
        if container.get("restartPolicy") == "Always":
            _add(total, asked)
        else:
            largest = {name: max(largest.get(name, 0.0), asked.get(name, 0.0)) for name in {*largest, *asked}}
    found = {name: max(total.get(name, 0.0), largest.get(name, 0.0)) for name in {*total, *largest}}
    _add(found, amounts(spec.get("overhead") or {}))
    return {"pods": 1.0, **found}


class GangQueue:
    """What the queue says of each job. Used from one event loop."""

    def __init__(
        self,
        jobs: ObjectStore,
        caches: CacheSet,
        wake: Callable[[Key], None],
        now: Callable[[], datetime],
        weights: Mapping[str, float],
    ) -> None:
        """
        Args:
            jobs: All TrainingJobs.
            caches: Pods of jobs, bound pods, nodes and PriorityClasses.
            wake: Puts a job on the queue of reconciles.
            now: The time.
            weights: Of namespaces; those that are not named have 1.
        """
        self._jobs = jobs
        self._bound = caches.store(BOUND_POD)
        self._pods = caches.store(POD)
        self._nodes = caches.store(NODE)
        self._classes = caches.store(PRIORITY_CLASS)
        self._wake = wake
        self._now = now
        self._weights = weights
        self._said: dict[Key, Admission] = {}
        self._granted: set[str] = set()  # uids of jobs that were admitted and have no pods yet
        self._seen: dict[Key, tuple[int, _Job]] = {}
        self._due: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        for store in (jobs, self._bound, self._nodes, self._classes):
            store.subscribe(lambda key, owner: self._changed())

    def admission(self, key: Key) -> Admission:
        """What the queue says of the job; without a reason where it has not looked yet."""
        said = self._said.get(key)
        if said is None:
            self._changed()
            return Admission(admitted=False)
        return said

    def _changed(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(PAUSE, self._pass)

    def _pass(self) -> None:
        self._due = None
        gangs: dict[str, Gang] = {}
        keys: dict[str, Key] = {}
        classes = {item["metadata"]["name"]: item for item in self._classes.all()}
        pauses: list[datetime] = []
        jobs = self._read()
        for key, job in jobs.items():
            has_pods = self._pods.has_owned(key.namespace, job.uid)
            pauses_until = job.requeue_at if job.requeue_at is not None and job.requeue_at > self._now() else None
            if not has_pods and (job.suspended or pauses_until is not None):
                if pauses_until is not None:
                    pauses.append(pauses_until)
                continue
            gang = self._gang(key, job, classes, has_pods=has_pods, pausing=pauses_until is not None)
            gangs[gang.name], keys[gang.name] = gang, key
        self._look_when(min(pauses, default=None))
        usage: dict[str, dict[str, dict[str, float]]] = {}
        known = {gang.uid for gang in gangs.values()}
        for pod in self._bound.all():
            # Pods of a job that is suspended or has ended are on their way out; till then they are anybody's.
            uid = pod["job"] if pod["job"] in known else ""
            _add(usage.setdefault(pod["node"], {}).setdefault(uid, {}), pod["requests"])
        said = {keys[name]: item for name, item in Pass(self._nodes.all(), usage, gangs.values()).decide().items()}
        self._granted = {gangs[name].uid for name, key in keys.items() if said[key].admitted}
        before, self._said = self._said, said
        for key, admission in said.items():
            if before.get(key) != admission:
                self._wake(key)

    def _look_when(self, moment: datetime | None) -> None:
        """Make a pass then: nothing changes in the cluster when a pause ends."""
        if self._later is not None:
            self._later.cancel()
        if moment is not None:
            wait = max(0.0, (moment - self._now()).total_seconds())
            self._later = asyncio.get_running_loop().call_later(wait, self._changed)

    def _read(self) -> dict[Key, _Job]:
        """The jobs that are not over; each is parsed when it changed."""
        seen: dict[Key, tuple[int, _Job]] = {}
        for key in self._jobs:
            version = self._jobs.version(key)
            known = self._seen.get(key)
            if known is not None and known[0] == version:
                seen[key] = known
            elif (manifest := self._jobs.get(key)) is not None:
                seen[key] = (version, _Job.of(manifest))
        self._seen = seen
        return {key: job for key, (_, job) in seen.items() if job.in_queue}

    def _gang(self, key: Key, job: _Job, classes: Mapping[str, Manifest], *, has_pods: bool, pausing: bool) -> Gang:
        class_ = (classes.get(job.priority_class) if job.priority_class else _default_class(classes)) or {}
        return Gang(
            name=str(key),
            uid=job.uid,
            priority=int(class_.get("value", 0)),
            created=job.created,
            workers=job.workers,
            shape=job.shape,
            spread=job.spread,
            admitted=has_pods or job.restarting or (job.uid in self._granted and not job.preempted),
            leaving=has_pods and (job.preempted or job.suspended or pausing),
            preempts=class_.get("preemptionPolicy") != "Never",
            namespace=key.namespace,
            weight=self._weights.get(key.namespace, 1.0),
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """What the queue reads of a job."""

    uid: str
    created: str
    in_queue: bool
    suspended: bool
    restarting: bool
    preempted: bool
    requeue_at: datetime | None
    priority_class: str
    workers: int
    spread: bool
    shape: Shape

    @classmethod
    def of(cls, manifest: Manifest) -> _Job:
        """From the job as the API server has it."""
        metadata, spec, status = manifest["metadata"], manifest["spec"], manifest.get("status") or {}
        true = {item["type"] for item in status.get("conditions") or () if item["status"] == "True"}
        again = (status.get("requeueState") or {}).get("requeueAt") if "Queued" in true else None
        workers: int = spec.get("numWorkers", 1)
        return cls(
            uid=metadata["uid"],
            created=metadata["creationTimestamp"],
            in_queue=not (
                {"Succeeded", "Failed"} & true
                or metadata.get("deletionTimestamp")
                or (metadata.get("labels") or {}).get(KUEUE_QUEUE)
            ),
            suspended=bool(spec.get("suspend")),
            restarting="Restarting" in true,
            preempted="Preempted" in true,
            requeue_at=datetime.fromisoformat(again) if again else None,
            priority_class=spec.get("priorityClassName") or "",
            workers=workers,
            spread=workers > 1 and (spec.get("topology") or {}).get("zoneSpread", "Spread") == "Spread",
            shape=shape_of(spec),
        )


def shape_of(spec: Mapping[str, Any]) -> Shape:
    """What one worker asks of its node, from the job's spec as the API server has it."""
    resources = dict(spec.get("resources") or {})
    gpu = spec.get("gpu") or {}
    tolerations: list[Manifest] = list(spec.get("tolerations") or ())
    selector = dict(spec.get("nodeSelector") or {})
    if gpu:
        name = gpu.get("resourceName", "nvidia.com/gpu")
        added = {} if gpu.get("resourceClaim") else {name: gpu.get("count", 1)}
        if rdma := gpu.get("rdma"):
            added[rdma["resourceName"]] = rdma.get("count", 1)
        resources["limits"] = {**(resources.get("limits") or {}), **added}
        tolerations.append({"key": name, "operator": "Exists", "effect": "NoSchedule"})
        if product := gpu.get("product"):
            selector.setdefault("nvidia.com/gpu.product", product)
    requests = pod_requests({"containers": [{"resources": resources}]})
    return Shape(
        tuple(sorted(requests.items())),
        tuple(sorted(selector.items())),
        tuple(tuple(sorted((k, str(v)) for k, v in item.items())) for item in tolerations),
    )


def _requests(container: Manifest) -> dict[str, float]:
    resources = container.get("resources") or {}
    return amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0.0) + amount


def _default_class(classes: Mapping[str, Manifest]) -> Manifest | None:
    return next((item for item in classes.values() if item.get("globalDefault")), None)
