"""What kills, a lost worker 0 and a paused process cost a TrainingJob on the cluster: seconds, and no step."""

from __future__ import annotations

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for
from tests.e2e.resources import script_job, training_job

RECOVERY = 15.0
"""Seconds from a kill to the next step, with the image present."""
HANG_TIMEOUT = 5.0


def recovered(kube: Kube, name: str, attempt: int) -> Manifest:
    """The record of an attempt's start, once its first step came."""

    def look() -> Manifest | None:
        status = kube.get("trainingjob", name).get("status", {})
        last: Manifest = status.get("lastRestart") or {}
        return last if last.get("attempt") == attempt and last.get("recoverySeconds") else None

    return wait_for(f"attempt {attempt} of {name} takes a step", look, seconds=90, every=0.2)


def test_kills_and_a_pause_cost_seconds_and_no_step(kube: Kube) -> None:
    kube.apply(*script_job("hurt", steps=350, step_seconds=0.1, restartPolicy={"hangTimeout": f"{HANG_TIMEOUT:g}s"}))

    def past(step: int) -> bool:
        return int(kube.get("trainingjob", "hurt").get("status", {}).get("progress", {}).get("step", 0)) >= step

    wait_for("training is under way", lambda: past(20), seconds=90)
    stays = kube.get("pod", "hurt-worker-2")["metadata"]["uid"]

    kube.delete("pod", "hurt-worker-1", force=True)
    costs = {"worker 1": recovered(kube, "hurt", 2)}
    kube.delete("pod", "hurt-worker-0", force=True)
    costs["worker 0"] = recovered(kube, "hurt", 3)
    kube.run("exec", "hurt-worker-2", "--", "sh", "-c", "kill -KILL $(cat /proc/1/task/1/children)")
    costs["process"] = recovered(kube, "hurt", 4)
    kube.run("exec", "hurt-worker-2", "--", "sh", "-c", "kill -STOP $(cat /proc/1/task/1/children)")
    costs["pause"] = recovered(kube, "hurt", 5)

    for what, last in costs.items():
        print(f"{what}: {last['recoverySeconds']} s to the next step ({last['message']})")  # noqa: T201 - the figure
    assert costs["pause"]["reason"] == "WorkerHung"
    assert "worker 2) is stopped" in costs["pause"]["message"]
    assert "most recent call first" in kube.run("logs", "hurt-worker-1"), "the stacks of the others are in their logs"
    seconds = {what: float(last["recoverySeconds"]) for what, last in costs.items()}
    assert seconds.pop("pause") <= HANG_TIMEOUT + RECOVERY
    assert max(seconds.values()) <= RECOVERY, seconds

    def finished() -> Manifest | None:
        job = kube.get("trainingjob", "hurt")
        assert not is_true(job, "Failed"), condition(job, "Failed")["message"]
        return job if is_true(job, "Succeeded") else None

    job = wait_for("the run ends", finished, seconds=120)
    assert job["status"]["attempt"] == 5
    assert job["status"]["restarts"] == 2, "a deleted pod is not the worker's own failure"
    assert job["status"]["progress"]["resumedFromStep"] >= 20
    assert "as one uninterrupted run gives" in kube.run("logs", "hurt-worker-0")
    assert kube.get("pod", "hurt-worker-2")["metadata"]["uid"] == stays, "its pod outlived all of it"
    assert {"Recovered", "WorkerHung", "WorkerFailed"} <= kube.events("hurt")


def test_a_job_is_scaled_while_it_trains(kube: Kube) -> None:
    kube.apply(
        training_job("stretch", workers=2, epochs=400, minWorkers=1, maxWorkers=3, checkpoint={"interval": "2s"})
    )

    def status() -> Manifest:
        found: Manifest = kube.get("trainingjob", "stretch").get("status", {})
        return found

    wait_for("training is under way", lambda: status().get("progress", {}).get("epoch", 0) >= 5, seconds=90)
    stay = {pod["metadata"]["uid"] for pod in kube.list("pods", "app.kubernetes.io/instance=stretch")}
    kube.run("scale", "trainingjob/stretch", "--replicas=3")
    wait_for(
        "the third worker takes part",
        lambda: (status().get("lastRestart") or {}).get("reason") == "WorkersJoined",
        seconds=90,
    )
    assert stay < {pod["metadata"]["uid"] for pod in kube.list("pods", "app.kubernetes.io/instance=stretch")}
    assert status()["restarts"] == 0
    wait_for("the run ends", lambda: is_true(kube.get("trainingjob", "stretch"), "Succeeded"), seconds=180)
    assert status()["workers"]["succeeded"] == 3
    assert float(status()["metrics"]["accuracy"]) > 0.94
