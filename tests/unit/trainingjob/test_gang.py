"""The cluster's own gang scheduling in its shapes, and Kueue's groups of pods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controllers.runtime.client import ApiError
from controllers.runtime.objects import POD
from controllers.runtime.plan import Plan
from controllers.trainingjob.gang import APIS, GangAPI, discover
from controllers.trainingjob.plan import plan
from controllers.trainingjob.readiness import problem
from headrace.api.trainingjob import TrainingJob
from tests.unit.trainingjob.worlds import (
    NOW,
    SETTINGS,
    conditions,
    job,
    observed,
    planned,
    pod,
    run_of,
    unscheduled,
)

SHAPES = {api.type.api_version.rpartition("/")[2]: api for api in APIS}


def gang_plan(of: TrainingJob, api: GangAPI | None) -> Plan:
    return plan(of, replace(observed(), gang_api=api), NOW, SETTINGS)


class Served:
    """An API server that serves these resources of scheduling.k8s.io."""

    def __init__(self, **versions: list[str]) -> None:
        self.versions = versions

    async def get(self, path: str, params: Any = None) -> dict[str, Any]:
        if path == "/apis/scheduling.k8s.io":
            return {"versions": [{"version": version} for version in self.versions]}
        return {"resources": [{"name": name} for name in self.versions[path.rpartition("/")[2]]]}


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"v1": ["priorityclasses"]}, None),
        # 1.36 with the API switched on, as the local cluster serves it.
        ({"v1": ["priorityclasses"], "v1alpha2": ["podgroups", "podgroups/status", "workloads"]}, "v1alpha2"),
        ({"v1": ["priorityclasses"], "v1alpha1": ["workloads"]}, "v1alpha1"),  # 1.35
        ({"v1": ["priorityclasses"], "v1alpha3": ["podgroups"], "v1beta1": ["podgroups"]}, "v1beta1"),  # 1.37
        # v1beta1 of old held PriorityClasses.
        ({"v1beta1": ["priorityclasses"], "v1alpha2": ["podgroups"]}, "v1alpha2"),
    ],
)
async def test_the_best_shape_that_is_served_is_found(versions: dict[str, list[str]], found: str | None) -> None:
    client: Any = Served(**versions)
    assert await discover(client) == (SHAPES[found] if found else None)


async def test_a_server_that_does_not_say_is_an_error_and_not_a_cluster_without_gangs() -> None:
    class Broken:
        async def get(self, path: str, params: Any = None) -> dict[str, Any]:
            raise ApiError(503, "ServiceUnavailable", "etcd is away")

    broken: Any = Broken()
    with pytest.raises(ApiError):
        await discover(broken)


def test_a_pod_group_is_made_before_its_pods_and_they_name_it() -> None:
    of = job(priorityClassName="urgent")
    applies = gang_plan(of, SHAPES["v1alpha2"]).applies
    kinds = [item.type.kind for item in applies]
    assert kinds.index("PodGroup") < kinds.index("Pod")
    (group,) = (item.manifest for item in applies if item.type.kind == "PodGroup")
    # The fields as k8s.io/api v0.36 and v0.37 have them: PodGroupSpec, GangSchedulingPolicy.
    assert group["spec"] == {"schedulingPolicy": {"gang": {"minCount": 3}}, "priorityClassName": "urgent"}
    specs = [item.manifest["spec"] for item in applies if item.type == POD]
    assert [spec["schedulingGroup"] for spec in specs] == [{"podGroupName": "digits"}] * 3
    assert {spec["priorityClassName"] for spec in specs} == {"urgent"}


def test_the_shape_of_1_35() -> None:
    applies = gang_plan(job(), SHAPES["v1alpha1"]).applies
    (workload,) = (item.manifest for item in applies if item.type.kind == "Workload")
    assert workload["spec"]["podGroups"] == [{"name": "workers", "policy": {"gang": {"minCount": 3}}}]
    assert workload["spec"]["controllerRef"] == {"apiGroup": "headrace.dev", "kind": "TrainingJob", "name": "digits"}
    specs = [item.manifest["spec"] for item in applies if item.type == POD]
    assert [spec["workloadRef"] for spec in specs] == [{"name": "digits", "podGroup": "workers"}] * 3


@pytest.mark.parametrize(("api", "workers"), [(None, 3), (SHAPES["v1alpha2"], 1)], ids=["not served", "a lone worker"])
def test_no_group_where_there_is_none(api: GangAPI | None, workers: int) -> None:
    applies = gang_plan(job(numWorkers=workers), api).applies
    assert not [item for item in applies if item.type.kind in ("PodGroup", "Workload")]
    assert not [item for item in applies if "schedulingGroup" in item.manifest.get("spec", {})]


def test_priorities_of_the_system_stay_with_the_pods() -> None:
    # The API server refuses a PodGroup with a priority above 1,000,000,000.
    applies = gang_plan(job(priorityClassName="system-cluster-critical"), SHAPES["v1alpha2"]).applies
    (group,) = (item.manifest for item in applies if item.type.kind == "PodGroup")
    assert "priorityClassName" not in group["spec"]


def test_the_worker_that_says_why_speaks_for_its_gang() -> None:
    of = job(resources={"requests": {"cpu": "2"}})
    # As kube-scheduler 1.36 writes them.
    waits = "pod group is unschedulable, waiting for minCount pods from a gang to be scheduled"
    pods = [unscheduled(pod(of, 0), waits), unscheduled(pod(of, 1), waits)]
    pods.append(unscheduled(pod(of, 2), "0/3 nodes are available: 3 Insufficient cpu."))
    found = problem(run_of(of, pods))
    assert found is not None
    assert found.reason == "InsufficientCPU"
    assert found.message.startswith("3 of 3 workers wait. ")


def labelled(workers: int = 3) -> TrainingJob:
    of = job(numWorkers=workers)
    labels = {"kueue.x-k8s.io/queue-name": "team-queue"}
    return of.model_copy(update={"metadata": of.metadata.model_copy(update={"labels": labels})})


def test_pods_of_a_job_in_a_queue_of_kueue_are_one_of_its_groups() -> None:
    """https://kueue.sigs.k8s.io/docs/tasks/run/plain_pods/, "Running a group of Pods to be admitted together"."""
    metadata = [item.manifest["metadata"] for item in planned(labelled()).applies if item.type == POD]
    assert len(metadata) == 3
    for item in metadata:
        assert item["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
        assert item["labels"]["kueue.x-k8s.io/pod-group-name"] == "digits-1"
        assert item["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "3"
        assert item["annotations"]["kueue.x-k8s.io/retriable-in-group"] == "false"
    (lone,) = (item.manifest["metadata"] for item in planned(labelled(1)).applies if item.type == POD)
    assert lone["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
    assert "kueue.x-k8s.io/pod-group-name" not in lone["labels"]


def test_a_group_that_kueue_holds_says_so() -> None:
    of = labelled()
    pods = []
    for index in range(3):
        item = conditions(pod(of, index), PodScheduled=("False", "SchedulingGated", "Scheduling is blocked"))
        item["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
        pods.append(item)
    found = problem(run_of(of, pods))
    assert found is not None
    assert found.reason == "WaitingForKueue"
    assert "'team-queue'" in found.message
    assert "kubectl get workloads.kueue.x-k8s.io -n team" in found.message
