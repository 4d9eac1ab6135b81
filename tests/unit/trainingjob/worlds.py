"""Builders of jobs, pods and nodes for the table tests, in the shapes that kubelet, scheduler and API server write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from controllers.runtime.objects import Manifest, by_name
from controllers.runtime.plan import Plan
from controllers.runtime.settings import Settings
from controllers.trainingjob import builders
from controllers.trainingjob.observed import Observed
from controllers.trainingjob.plan import plan
from controllers.trainingjob.run import Run
from headrace.api.meta import rfc3339
from headrace.api.trainingjob import TrainingJob

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
SETTINGS = Settings()


def ago(seconds: float) -> str:
    return rfc3339(NOW - timedelta(seconds=seconds))


def job(status: Mapping[str, Any] | None = None, **spec: Any) -> TrainingJob:
    kind = {} if {"script", "command"} & set(spec) else {"classifier": {"dataset": {"builtin": "Digits"}}}
    manifest = {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "digits", "namespace": "team", "uid": "job-uid", "generation": 1},
        "spec": {"numWorkers": 3, **kind, **spec},
    }
    if status is not None:
        manifest["status"] = dict(status)
    return TrainingJob.model_validate(manifest)


def pod(of: TrainingJob, index: int, attempt: int = 1, *, restarts: int = 0, age: float = 60) -> Manifest:
    """A pod as the API server has it right after its creation."""
    manifest = builders.worker(of, SETTINGS, index, attempt=attempt, restarts=restarts, zones=True)
    manifest["metadata"] |= {"uid": f"uid-{index}-{attempt}", "creationTimestamp": ago(age)}
    manifest["status"] = {"phase": "Pending", "conditions": []}
    return manifest


def conditions(item: Manifest, **values: str | tuple[str, str, str]) -> Manifest:
    """Set conditions by type: a status, or (status, reason, message)."""
    kept = [c for c in item["status"].get("conditions") or [] if c["type"] not in values]
    for type_, value in values.items():
        status, reason, message = value if isinstance(value, tuple) else (value, "", "")
        kept.append(
            {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": ago(60)}
        )
    item["status"]["conditions"] = kept
    return item


def scheduled(item: Manifest, node: str | None = None) -> Manifest:
    item["spec"]["nodeName"] = node or f"node-{'abc'[int(item['metadata']['name'][-1]) % 3]}"
    return conditions(item, PodScheduled="True")


def unscheduled(item: Manifest, message: str) -> Manifest:
    return conditions(item, PodScheduled=("False", "Unschedulable", message))


def waiting(item: Manifest, reason: str, message: str = "", container: str = "worker") -> Manifest:
    scheduled(item)
    field = "containerStatuses" if container == "worker" else "initContainerStatuses"
    image = "registry.example/team/trainer:1"
    item["status"][field] = [
        {"name": container, "image": image, "state": {"waiting": {"reason": reason, "message": message}}}
    ]
    return item


def running(item: Manifest, node: str | None = None) -> Manifest:
    scheduled(item, node)
    item["status"] |= {
        "phase": "Running",
        "containerStatuses": [{"name": "worker", "state": {"running": {"startedAt": ago(50)}}}],
    }
    return conditions(item, Ready="True", PodReadyToStartContainers="True")


def ended(
    item: Manifest, code: int, *, reason: str = "", message: str = "", at: float = 10, container: str = "worker"
) -> Manifest:
    """All containers ended, `at` seconds ago."""
    running(item)
    state = {
        "terminated": {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
            "finishedAt": ago(at),
        }
    }
    statuses = [{"name": container, "state": state}]
    item["status"] |= {
        "phase": "Failed" if code else "Succeeded",
        "containerStatuses": statuses if container == "worker" else [],
        "initContainerStatuses": [] if container == "worker" else statuses,
    }
    return conditions(item, Ready="False")


def terminating(item: Manifest, asked: float = 1, grace: int = 30) -> Manifest:
    """Deleted `asked` seconds ago."""
    item["metadata"] |= {"deletionTimestamp": ago(asked - grace), "deletionGracePeriodSeconds": grace}
    return item


def node(
    name: str,
    zone: str | None = "a",
    *,
    ready: str = "True",
    since: float = 600,
    taints: Any = (),
    labels: Any = (),
    **offers: str,
) -> Manifest:
    labels = dict(labels)
    if gpus := offers.pop("gpus", None):
        offers["nvidia.com/gpu"] = gpus
    if zone:
        labels[builders.ZONE] = zone
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": list(taints)},
        "status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", **offers},
            "conditions": [{"type": "Ready", "status": ready, "reason": "Kubelet", "lastTransitionTime": ago(since)}],
        },
    }


NODES = tuple(node(f"node-{zone}", zone) for zone in "abc")


def observed(pods: Iterable[Manifest] = (), nodes: Iterable[Manifest] = NODES) -> Observed:
    cluster = list(nodes)
    return Observed(by_name(pods), by_name(cluster), cluster)


def run_of(of: TrainingJob, pods: Iterable[Manifest], nodes: Iterable[Manifest] = NODES) -> Run:
    return Run.of(of, observed(pods, nodes), NOW)


def planned(
    of: TrainingJob, pods: Iterable[Manifest] = (), nodes: Iterable[Manifest] = NODES, later: float = 0
) -> Plan:
    return plan(of, observed(pods, nodes), NOW + timedelta(seconds=later), SETTINGS)


def with_status(of: TrainingJob, status: Mapping[str, Any] | None) -> TrainingJob:
    """The job after a status write, read back as the API would return it."""
    return TrainingJob.model_validate({**of.model_dump(by_alias=True, mode="json"), "status": status})


def condition(plan_or_status: Plan | Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    status = plan_or_status.status if isinstance(plan_or_status, Plan) else plan_or_status
    assert status is not None
    return next(item for item in status["conditions"] if item["type"] == type_)
