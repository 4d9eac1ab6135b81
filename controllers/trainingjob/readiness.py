"""Whether a run is well: a chain of small rules about the current attempt's workers, the first that applies speaks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from controllers.runtime.objects import Manifest
from controllers.runtime.podstate import (
    Problem,
    condition,
    container_statuses,
    has_condition,
    is_finished,
    is_ready,
    moment,
    name_of,
    node_of,
    phase,
    unschedulable,
    waiting_problem,
)
from controllers.trainingjob.failure import settling
from controllers.trainingjob.gang import waits_for_kueue
from controllers.trainingjob.run import Run, is_working, names
from controllers.trainingjob.scheduling import explain
from headrace.api.meta import parse_duration

VOLUMES_AFTER = timedelta(seconds=20)
"""Time after which a scheduled pod without a sandbox is said to wait for its volumes."""
STARTING = "Starting"
"""Reason while everything goes its way."""
UNDECIDED = "WorkerNotReady"
"""Reason between the first sign that a worker is not well and the verdict on its attempt."""


def problem(run: Run) -> Problem | None:
    """Why the workers do not all run, or None when they do."""
    for rule in RULES:
        found = rule(run)
        if found is not None:
            return found
    return None


def container_cannot_start(run: Run) -> Problem | None:
    for pod in run.present:
        found = waiting_problem(pod)
        if found is not None:
            return found
    return None


def worker_is_unschedulable(run: Run) -> Problem | None:
    gpu = run.job.spec.gpu
    waiting = [pod for pod in run.present if unschedulable(pod) is not None]
    if not waiting:
        return None
    # The others of a gang only say that they wait for it.
    telling = [pod for pod in waiting if not (unschedulable(pod) or "").startswith("pod group ")]
    found = explain((telling or waiting)[0], run.observed.cluster, gpu.resource_name if gpu else None)
    if found is None or len(waiting) == 1:
        return found
    return Problem(found.reason, f"{len(waiting)} of {len(run.workers)} workers wait. {found.message}")


def kueue_holds_them(run: Run) -> Problem | None:
    return waits_for_kueue(run.job, run.present)


def volumes_are_late(run: Run) -> Problem | None:
    for pod in run.present:
        if not _waits_for_volumes(pod, run):
            continue
        script = run.job.spec.script
        if script is not None and script.config_map is not None:
            name, key = script.config_map.name, script.config_map.key
            return Problem(
                "MissingConfigMap",
                f"pod {name_of(pod)} cannot mount its script: ConfigMap {name!r} with the key {key!r} must exist in "
                f"namespace {run.job.metadata.namespace}; create it (kubectl create configmap {name} "
                f"--from-file={key}) and the pod starts by itself",
            )
        return Problem(
            "PodSandboxNotReady",
            f"pod {name_of(pod)} waits on node {node_of(pod)} for its volumes or its network; see "
            f"kubectl describe pod {name_of(pod)}",
        )
    return None


def workers_are_starting(run: Run) -> Problem | None:
    waiting = [name for pod, name in _numbered(run) if pod is None or phase(pod) == "Pending"]
    if not waiting:
        return None
    return Problem(STARTING, f"attempt {run.attempt}: workers are being started")


def worker_is_unwell(run: Run) -> Problem | None:
    unwell = [pod for pod in run.present if not is_working(pod)]
    if not unwell:
        return None
    return Problem(UNDECIDED, f"{names(unwell)} not ready; whether the attempt goes on is decided within seconds")


RULES: tuple[Callable[[Run], Problem | None], ...] = (
    container_cannot_start,
    worker_is_unschedulable,
    kueue_holds_them,
    volumes_are_late,
    workers_are_starting,
    worker_is_unwell,
)


def look_again(run: Run) -> timedelta | None:
    """When something may be so without any pod saying it: nodes wake nobody."""
    after: list[timedelta] = [verdict] if (verdict := settling(run)) is not None else []
    if run.group is not None and run.group.missing:
        after.append(timedelta(seconds=20))  # Whether one of them is out of reach is decided by time.
    if (left := time_for_the_rest(run)) is not None:
        after.append(max(left, timedelta(0)))
    for pod in run.present:
        if is_finished(pod) or is_ready(pod):
            continue
        if phase(pod) == "Running":
            after.append(
                timedelta(seconds=5)
            )  # Its node may have gone: the pod hears of it before we hear of the node.
        elif node_of(pod):
            after.append(timedelta(seconds=15))
        elif unschedulable(pod) is not None:
            after.append(timedelta(seconds=30))
    return min(after, default=None)


def time_for_the_rest(run: Run) -> timedelta | None:
    """What is left of scheduling.timeout for the workers that have no node yet; None where nobody waits for them."""
    fewest = run.job.spec.min_workers
    if fewest is not None and sum(bool(node_of(pod)) for pod in run.present) >= fewest:
        return None  # An elastic job trains with those that it has.
    # One that is gone from a group that was whole is made anew at once; since when it is missing is not on record.
    every = run.present if run.complete else run.workers
    rest = [pod for pod in every if pod is None or not (node_of(pod) or is_finished(pod))]
    # A group of which no pod has a node holds nothing, except room in a quota when some were not even created.
    if not rest or not run.present or (len(rest) == len(run.workers) and None not in rest):
        return None
    counted = [pod for pod in rest if pod is not None] or run.present
    created = [at for pod in counted if (at := moment(pod["metadata"].get("creationTimestamp"))) is not None]
    return max(created, default=run.now) + parse_duration(run.job.spec.scheduling.timeout) - run.now


def _waits_for_volumes(pod: Manifest, run: Run) -> bool:
    scheduled = condition(pod, "PodScheduled")
    if phase(pod) != "Pending" or scheduled is None or scheduled["status"] != "True":
        return False
    if not has_condition(pod, "PodReadyToStartContainers", "False") or any(
        (status.get("state") or {}).get("waiting", {}).get("reason") not in ("ContainerCreating", "PodInitializing")
        for status in container_statuses(pod)
    ):
        return False
    since = moment(scheduled.get("lastTransitionTime"))
    return since is not None and run.now - since >= VOLUMES_AFTER


def _numbered(run: Run) -> list[tuple[Manifest | None, str]]:
    return [(pod, run.name(index)) for index, pod in enumerate(run.workers)]
