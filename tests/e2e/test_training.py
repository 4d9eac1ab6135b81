"""TrainingJob on the three-zone cluster: what a user gets, and what a lost worker or leader costs."""

from __future__ import annotations

import json
import time
import urllib.request

import pytest

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for
from cluster.release import SYSTEM_NAMESPACE, leader_pod
from tests.e2e.resources import gpu_job, script_job, training_job

ONE_WORKER_NOISE = 0.02
"""Accuracy on 360 test digits is a binomial proportion: its standard error at 0.97 is 0.009; two of them."""


def finished(kube: Kube, name: str) -> Manifest | None:
    job = kube.get("trainingjob", name)
    assert not is_true(job, "Failed"), condition(job, "Failed")["message"]
    return job if is_true(job, "Succeeded") else None


def failed_job(kube: Kube, name: str) -> Manifest | None:
    job = kube.get("trainingjob", name)
    return job if is_true(job, "Failed") else None


def step_of(kube: Kube, name: str) -> int:
    return int(kube.get("trainingjob", name).get("status", {}).get("progress", {}).get("step", 0))


def pods_of(kube: Kube, name: str) -> dict[str, Manifest]:
    return {pod["metadata"]["name"]: pod for pod in kube.list("pods", f"app.kubernetes.io/instance={name}")}


def running_past(kube: Kube, name: str, step: int) -> None:
    wait_for(f"{name} past step {step}", lambda: step_of(kube, name) >= step, seconds=90)


def test_three_workers_in_three_zones_reach_what_one_reaches(kube: Kube) -> None:
    kube.apply(training_job("three", workers=3), training_job("one", workers=1))
    three = wait_for("three workers finish", lambda: finished(kube, "three"), seconds=180)
    one = wait_for("one worker finishes", lambda: finished(kube, "one"), seconds=180)

    status = three["status"]
    assert {place["zone"] for place in status["placement"]} == {"a", "b", "c"}
    assert status["progress"]["backend"] == "gloo"
    assert status["progress"]["percent"] == 100
    assert status["modelUri"].endswith("model.onnx")
    assert status["workers"]["succeeded"] == 3
    assert status["completionTime"] > status["startTime"]
    accuracy = {name: float(job["status"]["metrics"]["accuracy"]) for name, job in (("three", three), ("one", one))}
    assert abs(accuracy["three"] - accuracy["one"]) <= ONE_WORKER_NOISE, accuracy
    assert min(accuracy.values()) > 0.94, accuracy
    assert "accuracy" in kube.run("logs", "three-worker-0")
    assert {"Running", "Succeeded"} <= kube.events("three")

    kube.delete("trainingjob", "three", "one")
    wait_for("children are gone", lambda: not pods_of(kube, "three"), seconds=60)
    assert not kube.find("service", "three-workers")


def test_a_killed_worker_is_replaced_and_the_run_resumes(kube: Kube) -> None:
    kube.apply(*script_job("hurt", steps=150, step_seconds=0.1))
    running_past(kube, "hurt", 30)
    kube.delete("pod", "hurt-worker-1", force=True)
    job = wait_for("the run ends", lambda: finished(kube, "hurt"), seconds=180)
    assert job["status"]["attempt"] == 2
    assert job["status"]["restarts"] == 0, "a deleted pod is not the worker's own failure"
    assert job["status"]["progress"]["resumedFromStep"] >= 10
    assert "as one uninterrupted run gives" in kube.run("logs", "hurt-worker-0")


def test_the_leader_dies_mid_training_and_the_standby_takes_over(kube: Kube) -> None:
    kube.apply(*script_job("headless", steps=120, step_seconds=0.2))
    running_past(kube, "headless", 5)
    before = pods_of(kube, "headless")
    system = kube.within(SYSTEM_NAMESPACE)
    leader = leader_pod(system)
    killed = time.monotonic()
    system.delete("pod", leader, force=True, wait=False)
    wait_for("a standby leads", lambda: leader_pod(system) not in ("", leader), seconds=20, every=0.2)
    assert time.monotonic() - killed < 20
    job = wait_for("the run ends", lambda: finished(kube, "headless"), seconds=180)
    assert job["status"]["attempt"] == 1
    after = pods_of(kube, "headless")
    assert {n: p["metadata"]["uid"] for n, p in before.items()} == {n: p["metadata"]["uid"] for n, p in after.items()}


def test_a_job_that_fails_for_ever_stops_at_its_limit(kube: Kube) -> None:
    job = training_job("hopeless", workers=1)
    del job["spec"]["classifier"]
    job["spec"] |= {
        "image": "headrace/trainer:0.1.0",
        "command": ["python3", "-c", "raise SystemExit('no such column: price')"],
        "restartPolicy": {"maxRestarts": 1},
    }
    kube.apply(job)
    failed = wait_for(
        "the job fails",
        lambda: failed_job(kube, "hopeless"),
        seconds=120,
    )
    assert failed["status"]["restarts"] == 1
    assert failed["status"]["attempt"] == 2
    assert "no such column: price" in condition(failed, "Failed")["message"]
    assert condition(failed, "Ready")["status"] == "False"


MISSING = [
    pytest.param(
        {"script": {"configMap": {"name": "no-such-map", "key": "train.py"}}},
        "MissingConfigMap",
        "no-such-map",
        id="script",
    ),
    pytest.param(
        {"storage": {"uri": "s3://headrace/x", "secretRef": {"name": "no-such-secret"}}},
        "MissingSecret",
        "no-such-secret",
        id="secret",
    ),
    pytest.param({"image": "headrace/no-such-image:1"}, "ImagePullFailed", "headrace/no-such-image:1", id="image"),
    pytest.param({"gpu": {"count": 1}}, "InsufficientGPU", "nvidia.com/gpu", id="gpu"),
    pytest.param({"nodeSelector": {"disk": "nvme"}}, "NoMatchingNode", "disk", id="node-selector"),
]


@pytest.mark.parametrize(("spec", "reason", "words"), MISSING)
def test_what_only_the_cluster_can_tell_is_said(kube: Kube, spec: Manifest, reason: str, words: str) -> None:
    name = f"missing-{reason.lower()}"
    job = training_job(name, workers=1)
    if "script" in spec:
        del job["spec"]["classifier"]
    job["spec"] |= spec
    kube.apply(job)

    def said() -> Manifest | None:
        found = condition(kube.get("trainingjob", name), "Ready")
        return found if found["reason"] == reason else None

    ready = wait_for(f"Ready says {reason}", said, seconds=60)
    assert ready["status"] == "False"
    assert words in ready["message"]
    kube.delete("trainingjob", name)


def test_a_gpu_job_names_the_nearest_node(kube: Kube) -> None:
    kube.apply(gpu_job("wants-gpu"))
    scheduled = wait_for(
        "Scheduled says what is missing",
        lambda: (
            (c := condition(kube.get("trainingjob", "wants-gpu"), "Scheduled"))["reason"] == "InsufficientGPU" and c
        ),
        seconds=60,
    )
    assert scheduled["status"] == "False"
    nodes = [node["metadata"]["name"] for node in kube.list("nodes")]
    assert "nvidia.com/gpu" in scheduled["message"]
    assert any(node in scheduled["message"] for node in nodes), scheduled["message"]
    kube.delete("trainingjob", "wants-gpu")


def test_a_bucket_that_does_not_exist_fails_the_job_with_the_remedy(kube: Kube) -> None:
    job = training_job("no-bucket", workers=1)
    job["spec"]["storage"] = {"uri": "s3://no-such-bucket/run", "secretRef": {"name": "headrace-storage"}}
    kube.apply(job)
    failed = wait_for("the job fails", lambda: failed_job(kube, "no-bucket"), seconds=90)
    assert "no-such-bucket" in condition(failed, "Failed")["message"]


def test_metrics_are_served(kube: Kube) -> None:
    system = kube.within(SYSTEM_NAMESPACE)
    with system.forward(f"pod/{leader_pod(system)}", 8080) as port:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    assert 'controller_runtime_reconcile_total{controller="trainingjob"' in text
    assert "workqueue_depth" in text
    assert 'leader_election_master_status{name="headrace-operator"} 1.0' in text


def test_logs_are_structured(kube: Kube) -> None:
    system = kube.within(SYSTEM_NAMESPACE)
    lines = [json.loads(line) for line in system.run("logs", leader_pod(system)).splitlines() if line.startswith("{")]
    reconciles = [line for line in lines if "reconcileID" in line]
    assert reconciles, "no log line of a reconcile"
    assert {"kind", "namespace", "name"} <= reconciles[-1].keys()
