"""When an InferenceService is Ready and Available, and what it says otherwise."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from controllers.runtime.objects import DEPLOYMENT, POD, Manifest
from tests.unit.inferenceservice.factory import (
    DEGRADED,
    NOW,
    STATIC,
    Cluster,
    again,
    condition,
    plan,
    pod,
    report,
    running_since,
    service,
    terminated,
    waiting,
    well,
    workloads,
)


def broken(component: str, **how: Any) -> Cluster:
    """A service whose pods of one part are all in the given state, while the rest is well."""
    of = service()
    cluster = well(of)
    for index in range(2):
        workload = workloads(of)[component]
        cluster.put(POD, pod(workload, f"{workload.name}-{index}", **({"ready": False} | how)))
    if component == "predictor":
        for index in range(2):
            cluster.put(POD, pod(workloads(of)["router"], f"digits-{index}", report=DEGRADED))
    return cluster


def test_ready_when_the_primary_answers_from_every_router() -> None:
    of = service()
    result = plan(of, well(of))
    assert result.status is not None
    assert {item["type"]: item["status"] for item in result.status["conditions"]} == {
        "Ready": "True",
        "Available": "True",
        "PredictorReady": "True",
        "RouterReady": "True",
    }
    assert result.status["url"] == "http://digits.demo.svc.cluster.local"
    assert result.status["answering"] == "predictor"
    assert result.status["predictor"] == {"ready": 2, "total": 2, "summary": "2/2"}
    assert result.requeue_after is None


def test_a_new_service_says_that_it_is_being_made() -> None:
    result = plan(service(), Cluster())
    assert condition(result)["reason"] == "Creating"
    assert condition(result, "Available")["status"] == "False"


FAILURES: list[tuple[str, str, dict[str, Any], str, tuple[str, ...]]] = [
    (
        "the model is not there",
        "predictor",
        {
            "container": {
                "state": waiting("CrashLoopBackOff", "back-off 20s"),
                "lastState": terminated(78, "loading\ns3://models/large: no such object"),
                "restartCount": 2,
            }
        },
        "ModelLoadFailed",
        ("s3://models/large: no such object", "predictor.model"),
    ),
    (
        "the model is not there, between two tries",
        "predictor",
        {"container": {"lastState": terminated(78, "s3://models/large: no such object"), "restartCount": 3}},
        "ModelLoadFailed",
        ("no such object",),
    ),
    (
        "the model is not there, at the first end",
        "predictor",
        {"container": {"state": terminated(78, "s3://models/large: no such object")}},
        "ModelLoadFailed",
        ("no such object",),
    ),
    (
        "the process crashes",
        "predictor",
        {
            "container": {
                "state": waiting("CrashLoopBackOff"),
                "lastState": terminated(1, "Traceback\nRuntimeError: no"),
                "restartCount": 4,
            }
        },
        "CrashLoopBackOff",
        ("RuntimeError: no", "kubectl logs --previous digits-predictor-0"),
    ),
    (
        "the process crashes, between two crashes",
        "predictor",
        {"container": {"lastState": terminated(1, "RuntimeError: no"), "restartCount": 2}},
        "CrashLoopBackOff",
        ("RuntimeError: no",),
    ),
    (
        "the model needs more memory than allowed",
        "predictor",
        {
            "container": {
                "state": waiting("CrashLoopBackOff"),
                "lastState": terminated(137, "", reason="OOMKilled"),
                "restartCount": 2,
            }
        },
        "OutOfMemory",
        ("resources.limits.memory",),
    ),
    (
        "the image is not there",
        "predictor",
        {"container": {"state": waiting("ImagePullBackOff", 'Back-off pulling image "x"')}},
        "ImagePullFailed",
        ("headrace/serving", "imagePullSecrets"),
    ),
    (
        "the Secret is not there",
        "predictor",
        {"container": {"state": waiting("CreateContainerConfigError", 'secret "models-s3" not found')}},
        "MissingSecret",
        ("'models-s3'", "create it"),
    ),
    (
        "no node has room",
        "predictor",
        {
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/4 nodes are available: 4 Insufficient cpu.",
                }
            ]
        },
        "Unschedulable",
        ("Insufficient cpu", "predictor.resources"),
    ),
    (
        "the router's configuration is wrong",
        "router",
        {"container": {"state": waiting("CrashLoopBackOff"), "lastState": terminated(78, "chain.json: no")}},
        "ConfigurationFailed",
        ("chain.json: no",),
    ),
    (
        "the router crashes",
        "router",
        {"container": {"state": waiting("CrashLoopBackOff"), "lastState": terminated(1, "boom"), "restartCount": 3}},
        "CrashLoopBackOff",
        ("boom",),
    ),
]


@pytest.mark.parametrize(
    ("component", "how", "reason", "words"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES]
)
def test_a_failure_is_named_with_its_remedy(
    component: str, how: dict[str, Any], reason: str, words: tuple[str, ...]
) -> None:
    result = plan(service(), broken(component, **how))
    ready = condition(result)
    assert (ready["status"], ready["reason"]) == ("False", reason)
    for word in words:
        assert word in ready["message"]
    assert condition(result, "PredictorReady" if component == "predictor" else "RouterReady")["reason"] == reason


def test_while_the_model_cannot_load_the_fallback_keeps_the_service_available() -> None:
    result = plan(service(), broken("predictor", container={"state": terminated(78, "no such object")}))
    assert condition(result, "Available")["status"] == "True"
    assert "step small answers" in condition(result)["message"]


@pytest.mark.parametrize("where", ["predictor", "router"])
def test_refused_pods_are_said(where: str) -> None:
    of = service()
    cluster = well(of)
    name = workloads(of)[where].name
    shown = next(item for item in cluster.all(DEPLOYMENT) if item["metadata"]["name"] == name)
    shown["status"] = {
        "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: compute, used cpu=4"}]
    }
    assert condition(plan(of, cluster))["reason"] == "PodsRefused"
    assert "exceeded quota" in condition(plan(of, cluster))["message"]


def test_the_smaller_model_answers() -> None:
    of = service()
    cluster = well(of)
    for index in range(2):
        cluster.put(POD, pod(workloads(of)["router"], f"digits-{index}", report=DEGRADED))
    ready = condition(plan(of, cluster))
    assert (ready["status"], ready["reason"]) == ("False", "FallbackAnswering")
    assert "step small" in ready["message"]
    assert "no replica is ready" in ready["message"]


def test_one_router_of_two_that_falls_back_is_enough_to_not_be_ready() -> None:
    of = service()
    cluster = well(of)
    cluster.put(POD, pod(workloads(of)["router"], "digits-1", report=DEGRADED))
    result = plan(of, cluster)
    assert condition(result)["reason"] == "FallbackAnswering"
    assert result.status is not None
    assert result.status["answering"] == "small"
    assert [(step["name"], step["state"]) for step in result.status["steps"]] == [
        ("predictor", "NotReady"),
        ("small", "Answering"),
        ("static", "Standby"),
    ]


def test_a_router_that_is_not_ready_has_no_say() -> None:
    of = service(router={"replicas": 3})
    cluster = well(of)
    cluster.put(POD, pod(workloads(of)["router"], "digits-1", ready=False, report=DEGRADED))
    result = plan(of, cluster)
    assert result.status is not None
    assert result.status["answering"] == "predictor"
    assert condition(result)["reason"] == "RouterNotReady"
    assert "2 of 3 router pods are ready; waiting for digits-1" in condition(result)["message"]
    assert condition(result, "Available")["status"] == "True"


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"answering": 5}',
        '{"answering": "small", "steps": [{"name": "small", "state": "Dancing"}]}',
        '{"answering": "small", "steps": [], "shell": "rm -rf /"}',
    ],
)
def test_a_malformed_report_is_ignored(text: str) -> None:
    of = service()
    cluster = well(of)
    cluster.put(POD, pod(workloads(of)["router"], "digits-0", report=text))
    result = plan(of, cluster)
    assert result.status is not None
    assert result.status["answering"] == "predictor"
    assert condition(result)["status"] == "True"


def test_a_long_reason_is_cut() -> None:
    of = service()
    cluster = well(of)
    said = report("small", predictor=("Open", "x" * 100_000), small="Answering")
    cluster.put(POD, pod(workloads(of)["router"], "digits-0", report=said))
    result = plan(of, cluster)
    assert result.status is not None
    assert len(result.status["steps"][0]["reason"]) == 500
    assert len(condition(result)["message"]) < 2000


def test_steps_of_an_earlier_chain_are_left_out() -> None:
    of = service(fallback=[STATIC])
    cluster = well(of)
    for index in range(2):
        cluster.put(POD, pod(workloads(of)["router"], f"digits-{index}", report=DEGRADED))
    result = plan(of, cluster)
    assert result.status is not None
    assert [step["name"] for step in result.status["steps"]] == ["predictor", "static"]
    assert result.status["answering"] == ""
    assert condition(result, "Available")["status"] == "True", "something answers, it is only no longer in the spec"


def test_nothing_answers() -> None:
    of = service(fallback=[])
    cluster = well(of)
    dead = report("", predictor=("NotReady", "no replica is ready"))
    for index in range(2):
        cluster.put(POD, pod(workloads(of)["router"], f"digits-{index}", report=dead))
    available = condition(plan(of, cluster), "Available")
    assert (available["status"], available["reason"]) == ("False", "NothingAnswers")
    assert "predictor is NotReady (no replica is ready)" in available["message"]
    assert "static response" in available["message"]


def test_no_router_is_ready() -> None:
    result = plan(service(), broken("router"))
    assert condition(result, "Available")["status"] == "False"
    assert "nothing answers at http://digits.demo.svc.cluster.local" in condition(result, "Available")["message"]


def test_a_predictor_is_missing() -> None:
    of = service()
    cluster = well(of)
    cluster.put(POD, pod(workloads(of)["predictor"], "digits-predictor-1", deleted=True))
    result = plan(of, cluster)
    assert condition(result)["reason"] == "PredictorNotReady"
    assert "1 of 2 predictor pods are ready" in condition(result)["message"]
    assert result.status is not None
    assert result.status["predictor"]["summary"] == "1/2"


def test_an_evicted_pod_is_no_pod() -> None:
    of = service()
    cluster = well(of)
    evicted = pod(workloads(of)["predictor"], "digits-predictor-9", ready=False, revision="before")
    evicted["status"]["phase"] = "Failed"
    cluster.put(POD, evicted)
    assert condition(plan(of, cluster))["status"] == "True"


def test_more_pods_than_the_least_are_the_autoscalers_business() -> None:
    of = service(predictor={"minReplicas": 2, "maxReplicas": 5})
    cluster = well(of)
    next(item for item in cluster.all(DEPLOYMENT) if item["metadata"]["name"] == "digits-predictor")["spec"][
        "replicas"
    ] = 4
    no_room: Manifest = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no cpu"}
    cluster.put(POD, pod(workloads(of)["predictor"], "digits-predictor-3", ready=False, conditions=[no_room]))
    result = plan(of, cluster)
    assert condition(result)["status"] == "True", "as many as the spec asks for at least are ready"
    assert result.status is not None
    assert result.status["predictor"]["summary"] == "2/4"


class TestCrashLoop:
    """Never Ready while the pods crash-loop, also in the moments in which they are up."""

    def crashed(self, ran: float, restarts: int = 5) -> Cluster:
        container = {"state": running_since(ran), "lastState": terminated(1, "boom"), "restartCount": restarts}
        of = service()
        cluster = well(of)
        cluster.put(POD, pod(workloads(of)["predictor"], "digits-predictor-0", container=container))
        return cluster

    def test_ready_between_two_crashes_is_not_ready(self) -> None:
        result = plan(service(), self.crashed(ran=30))
        assert condition(result)["reason"] == "CrashLoopBackOff"
        assert result.requeue_after == timedelta(seconds=90), "looked at again when it has run for two minutes"

    def test_a_container_that_keeps_running_is_trusted_again(self) -> None:
        assert condition(plan(service(), self.crashed(ran=121)))["status"] == "True"

    def test_one_restart_is_no_loop(self) -> None:
        assert condition(plan(service(), self.crashed(ran=1, restarts=1)))["status"] == "True"


class TestSilence:
    """Routers that have not reported are waited for a little, then their readiness is proof enough."""

    def silent(self, seconds: float) -> Cluster:
        of = service()
        cluster = well(of)
        since = (NOW - timedelta(seconds=seconds)).isoformat()
        for index in range(2):
            cluster.put(POD, pod(workloads(of)["router"], f"digits-{index}", since=since))
        return cluster

    def test_at_first_it_waits(self) -> None:
        result = plan(service(), self.silent(10))
        assert condition(result)["reason"] == "RouterNotReady"
        assert condition(result, "Available")["status"] == "True"
        assert result.requeue_after == timedelta(seconds=20)

    def test_then_it_goes_by_the_pods(self) -> None:
        assert condition(plan(service(), self.silent(31)))["status"] == "True"


def test_the_status_changes_neither_with_the_order_of_pods_nor_with_time() -> None:
    of = service()
    statuses = []
    for reasons in (["no replica is ready", "connection refused"], ["connection refused", "no replica is ready"]):
        cluster = well(of)
        for index, reason in enumerate(reasons):
            said = report("small", predictor=("NotReady", reason), small="Answering", static="Standby")
            cluster.put(POD, pod(workloads(of)["router"], f"digits-{index}", report=said))
        first = plan(of, cluster)
        later = plan(again(of, first), cluster, NOW + timedelta(hours=1))
        assert later.status == first.status
        assert not later.events
        statuses.append(first.status)
    assert statuses[0] == statuses[1]
