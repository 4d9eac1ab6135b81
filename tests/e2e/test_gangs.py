"""TrainingJobs that wait, are suspended and go on, on the three-zone cluster with its own gang scheduling."""

from __future__ import annotations

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for
from tests.e2e.resources import script_job
from tests.e2e.test_training import finished, pods_of, running_past, step_of

MORE_THAN_HALF = "1100m"
"""CPUs of a worker of which a node of two holds one."""


def big(name: str) -> list[Manifest]:
    resources = {"requests": {"cpu": MORE_THAN_HALF, "memory": "300Mi"}, "limits": {"memory": "1Gi"}}
    return script_job(name, steps=100_000, step_seconds=0.2, resources=resources)


def bound(kube: Kube, name: str) -> int:
    return sum("nodeName" in pod["spec"] for pod in pods_of(kube, name).values())


def ready(kube: Kube, name: str) -> bool:
    return is_true(kube.get("trainingjob", name), "Ready")


def test_of_two_gangs_that_each_need_more_than_half_one_runs_and_gives_way_when_it_is_suspended(kube: Kube) -> None:
    """volcano#3373, and what suspending saves: the run goes on from the step at which it was told to stop."""
    kube.apply(*big("one"), *big("two"))
    first = wait_for("one runs", lambda: next((n for n in ("one", "two") if ready(kube, n)), None), seconds=60)
    other = "two" if first == "one" else "one"
    why = wait_for(
        "the other says what is missing",
        lambda: (
            (found := condition(kube.get("trainingjob", other), "Scheduled"))["reason"] == "InsufficientCPU" and found
        ),
        seconds=30,
    )
    assert f"cpu={MORE_THAN_HALF}" in why["message"]
    assert (bound(kube, first), bound(kube, other)) == (3, 0)

    running_past(kube, first, 5)
    step = step_of(kube, first)
    kube.run("patch", "trainingjob", first, "--type=merge", "-p", '{"spec": {"suspend": true}}')
    wait_for("its room is the other's", lambda: ready(kube, other), seconds=60)
    suspended = kube.get("trainingjob", first)
    assert is_true(suspended, "Suspended")
    assert not pods_of(kube, first)

    kube.delete("trainingjob", other)
    kube.run("patch", "trainingjob", first, "--type=merge", "-p", '{"spec": {"suspend": false}}')
    running_past(kube, first, step + 1)
    job = kube.get("trainingjob", first)
    assert job["status"]["progress"]["resumedFromStep"] >= step
    assert job["status"]["restarts"] == 0
    kube.delete("trainingjob", first)


def test_a_finished_job_is_deleted_after_its_time(kube: Kube) -> None:
    kube.apply(*script_job("short", steps=20, step_seconds=0.05, workers=1, ttlSecondsAfterFinished=8))
    wait_for("it ends", lambda: finished(kube, "short"), seconds=60)
    wait_for("it is deleted", lambda: kube.find("trainingjob", "short") is None, seconds=30)
    assert not pods_of(kube, "short")
