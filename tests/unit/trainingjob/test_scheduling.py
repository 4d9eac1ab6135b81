"""Why a worker finds no node: the demand, the nearest node, the remedy, in words that can be searched for."""

from __future__ import annotations

from typing import Any

import pytest

from controllers.runtime.objects import Manifest
from controllers.trainingjob.scheduling import explain, is_open
from tests.unit.trainingjob.worlds import job, node, pod, running, unscheduled

GPU = "nvidia.com/gpu"
BUSY = "0/3 nodes are available: 3 Insufficient {}. preemption: 0/3 nodes are available."
CONTROL_PLANE = node(
    "control-plane", taints=[{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}], cpu="64"
)
PLAIN = [node("node-a", "a"), node("node-b", "b", cpu="8"), CONTROL_PLANE]
WITH_GPUS = [
    node("node-a", "a"),
    node("node-g", "g", cpu="16", labels={"nvidia.com/gpu.product": "NVIDIA-L4"}, gpus="2"),
]


def cpu(amount: str) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": amount}}}


@pytest.mark.parametrize(
    ("spec", "nodes", "said", "reason", "says"),
    [
        pytest.param(
            {"gpu": {"count": 1}}, PLAIN, BUSY.format(GPU), "InsufficientGPU",
            ["nvidia.com/gpu=1", "no node offers it", "nvidia.com/gpu=0", "leave spec.gpu out", "Scheduler: 0/3"],
            id="no node has GPUs",
        ),
        pytest.param(
            {"gpu": {"count": 4}}, WITH_GPUS, BUSY.format(GPU), "InsufficientGPU",
            ["nvidia.com/gpu=4", "Nearest node: node-g (zone g)", "nvidia.com/gpu=2", "fewer in gpu.count"],
            id="too few GPUs",
        ),
        pytest.param(
            {"gpu": {"count": 1, "product": "NVIDIA-H100"}}, WITH_GPUS, "didn't match node selector", "NoMatchingNode",
            ["gpu.product=NVIDIA-H100", "nodes have NVIDIA-L4", "Nearest node: node-g"], id="another product",
        ),
        pytest.param(
            {"gpu": {"count": 1}}, WITH_GPUS, BUSY.format(GPU), "InsufficientGPU", ["other pods hold"],
            id="GPUs are taken",
        ),
        pytest.param(
            cpu("12"), PLAIN, BUSY.format("cpu"), "InsufficientCPU",
            ["cpu=12", "Nearest node: node-b (zone b) with cpu=8", "Lower resources.requests"], id="no big enough node",
        ),
        pytest.param(
            cpu("7500m"), PLAIN, BUSY.format("cpu"), "InsufficientCPU", ["other pods hold their cpu"], id="cpu is taken"
        ),
        pytest.param(
            {"resources": {"limits": {"memory": "64Gi"}}}, PLAIN, BUSY.format("memory"), "InsufficientMemory",
            ["memory=64Gi", "memory=8Gi"], id="memory, by its limit",
        ),
        pytest.param(
            {"resources": {"limits": {"vendor.example/npu": 1}}}, PLAIN, BUSY.format("vendor.example/npu"),
            "InsufficientResource", ["vendor.example/npu=1"], id="another extended resource",
        ),
        pytest.param(
            {"nodeSelector": {"disk": "nvme"}}, PLAIN, "3 node(s) didn't match Pod's node affinity/selector",
            "NoMatchingNode", ["disk=nvme", "no node has this label", "Change nodeSelector"], id="no such label",
        ),
        pytest.param(
            {"nodeSelector": {"topology.kubernetes.io/zone": "d"}}, PLAIN, "didn't match", "NoMatchingNode",
            ["nodes have a, b"], id="no such zone",
        ),
        pytest.param(
            {**cpu("8"), "nodeSelector": {"topology.kubernetes.io/zone": "a"}}, PLAIN, "no match", "InsufficientCPU",
            ["no single node offers it together with the rest"], id="big enough only in another zone",
        ),
        pytest.param(
            {}, PLAIN, "3 node(s) didn't match pod topology spread constraints", "ZoneSpreadUnsatisfied",
            ["topology.zoneSpread"], id="zone without room",
        ),
        pytest.param(
            {}, [CONTROL_PLANE], "1 node(s) had untolerated taint {x: }", "UntoleratedTaint", ["Add tolerations"],
            id="tainted",
        ),
        pytest.param({}, PLAIN, "3 Too many pods", "Unschedulable", ["Too many pods"], id="something else"),
        pytest.param({}, [], "no nodes available", "NoMatchingNode", ["the cluster has none"], id="no nodes at all"),
    ],
)  # fmt: skip
def test_reason_and_remedy(
    spec: dict[str, Any], nodes: list[Manifest], said: str, reason: str, says: list[str]
) -> None:
    gpu = GPU if "gpu" in spec else None
    found = explain(unscheduled(pod(job(**spec), 0), said), nodes, gpu)
    assert found is not None
    assert found.reason == reason
    for part in says:
        assert part in found.message, found.message


def test_a_pod_that_was_not_refused_has_nothing_to_explain() -> None:
    assert explain(pod(job(), 0), PLAIN, None) is None
    assert explain(running(pod(job(), 0)), PLAIN, None) is None


TAINT = {"key": "team", "value": "vision", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("taints", "tolerations", "expected"),
    [
        ([], [], True),
        ([TAINT], [], False),
        ([TAINT], [{"operator": "Exists"}], True),
        ([TAINT], [{"key": "team", "operator": "Exists"}], True),
        ([TAINT], [{"key": "team", "value": "vision"}], True),
        ([TAINT], [{"key": "team", "value": "speech"}], False),
        ([TAINT], [{"key": "team", "operator": "Exists", "effect": "NoExecute"}], False),
        ([{"key": "team", "effect": "PreferNoSchedule"}], [], True),
    ],
)
def test_taints_and_tolerations(taints: list[Manifest], tolerations: list[Manifest], expected: bool) -> None:
    """The table of https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/."""
    worker = pod(job(tolerations=tolerations), 0)
    assert is_open(node("n", taints=taints), worker) is expected


def test_a_cordoned_node_is_not_open() -> None:
    cordoned = node("n")
    cordoned["spec"]["unschedulable"] = True
    assert not is_open(cordoned, pod(job(), 0))
