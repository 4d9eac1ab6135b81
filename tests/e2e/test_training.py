"""TrainingJob on the three-zone cluster: what a user gets, and what a lost worker or leader costs."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator

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


def last_checkpoint(kube: Kube, name: str) -> int:
    """Step of the last checkpoint that worker 0 says it saved; 0 before the first."""
    steps = re.findall(r"checkpoint of step (\d+) saved", kube.run("logs", f"{name}-worker-0"))
    return int(steps[-1]) if steps else 0


def test_the_embedded_store_dies_mid_training_and_the_run_goes_on(kube: Kube) -> None:
    kube.apply(*script_job("storeless", steps=150, step_seconds=0.15))
    before = wait_for("the first checkpoint", lambda: last_checkpoint(kube, "storeless"), seconds=90)
    system = kube.within(SYSTEM_NAMESPACE)
    store = system.get("pod", "headrace-s3-0")["metadata"]["uid"]
    system.delete("pod", "headrace-s3-0", force=True, wait=False)
    job = wait_for("the run ends", lambda: finished(kube, "storeless"), seconds=180)
    assert system.get("pod", "headrace-s3-0")["metadata"]["uid"] != store
    assert (job["status"]["attempt"], job["status"]["restarts"]) == (1, 0)
    assert "as one uninterrupted run gives" in kube.run("logs", "storeless-worker-0")
    assert last_checkpoint(kube, "storeless") > before, "it saves again once the store is back"


@pytest.fixture(scope="module")
def unwell(kube: Kube) -> Iterator[Kube]:
    """All jobs that cannot run, at once: each is looked at by a test of its own."""
    no_bucket = {"uri": "s3://no-such-bucket/run", "secretRef": {"name": "headrace-storage"}}
    jobs = [gpu_job("wants-gpu"), hopeless_job(), training_job("no-bucket", workers=1, storage=no_bucket)]
    for reason, (spec, _) in MISSING.items():
        job = training_job(missing_name(reason), workers=1)
        if "script" in spec:
            del job["spec"]["classifier"]
        job["spec"] |= spec
        jobs.append(job)
    kube.apply(*jobs)
    yield kube
    kube.delete("trainingjob", *[job["metadata"]["name"] for job in jobs], wait=False)


def hopeless_job() -> Manifest:
    job = training_job("hopeless", workers=1)
    del job["spec"]["classifier"]
    job["spec"] |= {
        "image": "headrace/trainer:0.1.0",
        "command": ["python3", "-c", "raise SystemExit('no such column: price')"],
        "restartPolicy": {"maxRestarts": 1},
    }
    return job


def test_a_job_that_fails_for_ever_stops_at_its_limit(unwell: Kube) -> None:
    failed = wait_for("the job fails", lambda: failed_job(unwell, "hopeless"), seconds=120)
    assert failed["status"]["restarts"] == 1
    assert failed["status"]["attempt"] == 2
    assert "no such column: price" in condition(failed, "Failed")["message"]
    assert condition(failed, "Ready")["status"] == "False"


MISSING: dict[str, tuple[Manifest, str]] = {
    "MissingConfigMap": ({"script": {"configMap": {"name": "no-such-map", "key": "train.py"}}}, "no-such-map"),
    "MissingSecret": (
        {"storage": {"uri": "s3://headrace/x", "secretRef": {"name": "no-such-secret"}}},
        "no-such-secret",
    ),
    "ImagePullFailed": ({"image": "headrace/no-such-image:1"}, "headrace/no-such-image:1"),
    "InsufficientGPU": ({"gpu": {"count": 1}}, "nvidia.com/gpu"),
    "NoMatchingNode": ({"nodeSelector": {"disk": "nvme"}}, "disk"),
}
"""What asks for something that is not there, and what the message must name, by the reason."""


def missing_name(reason: str) -> str:
    return f"missing-{reason.lower()}"


@pytest.mark.parametrize("reason", MISSING)
def test_what_only_the_cluster_can_tell_is_said(unwell: Kube, reason: str) -> None:
    def said() -> Manifest | None:
        found = condition(unwell.get("trainingjob", missing_name(reason)), "Ready")
        return found if found["reason"] == reason else None

    ready = wait_for(f"Ready says {reason}", said, seconds=90)
    assert ready["status"] == "False"
    assert MISSING[reason][1] in ready["message"]


def test_a_gpu_job_names_the_nearest_node(unwell: Kube) -> None:
    scheduled = wait_for(
        "Scheduled says what is missing",
        lambda: (
            (c := condition(unwell.get("trainingjob", "wants-gpu"), "Scheduled"))["reason"] == "InsufficientGPU" and c
        ),
        seconds=60,
    )
    assert scheduled["status"] == "False"
    nodes = [node["metadata"]["name"] for node in unwell.list("nodes")]
    assert "nvidia.com/gpu" in scheduled["message"]
    assert any(node in scheduled["message"] for node in nodes), scheduled["message"]


def test_a_bucket_that_does_not_exist_fails_the_job_with_the_remedy(unwell: Kube) -> None:
    failed = wait_for("the job fails", lambda: failed_job(unwell, "no-bucket"), seconds=90)
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
