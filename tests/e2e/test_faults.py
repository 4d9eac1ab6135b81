"""Faults of the network and of the cluster's priorities: training goes on, and what it cost is on record."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.kubectl import Kube, Manifest, condition, wait_for
from tests.e2e.installation import Zones
from tests.e2e.resources import script_job
from tests.e2e.test_training import pods_of, running_past, step_of

IMPORTANT = "headrace-e2e-important"


def test_a_cut_between_two_zones_is_named_and_training_goes_on_once_it_is_mended(kube: Kube, zones: Zones) -> None:
    kube.apply(
        *script_job(
            "apart",
            steps=100_000,
            step_seconds=0.1,
            topology={"preflight": {}},
            restartPolicy={"hangTimeout": "5s"},
            checkpoint={"interval": "2s"},
        )
    )
    running_past(kube, "apart", 30)
    placement = kube.get("trainingjob", "apart")["status"]["placement"]
    one, other = placement[1]["node"], placement[2]["node"]

    def dead() -> Manifest | None:
        ready = condition(kube.get("trainingjob", "apart"), "Ready")
        return ready if ready["reason"] == "LinkDead" else None

    with zones.cut(one, other):
        said = wait_for("the dead link is named", dead, seconds=60)
    for node in (one, other):
        assert f"(node {node}, zone {zones.of_node(node)})" in said["message"]
    step = step_of(kube, "apart")
    running_past(kube, "apart", step + 1)
    status = kube.get("trainingjob", "apart")["status"]
    last = status["lastRestart"]
    print(f"cut between zones: {last['recoverySeconds']} s to the next step ({last['message']})")  # noqa: T201
    assert last["reason"] == "WorkerHung"
    assert status["restarts"] == 1
    assert status["progress"]["resumedFromStep"] >= 20
    kube.delete("trainingjob", "apart")


@pytest.fixture
def important(kube: Kube) -> Iterator[str]:
    """A PriorityClass above all else here."""
    kube.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": IMPORTANT},
            "value": 1000,
        }
    )
    yield IMPORTANT
    kube.run("delete", "priorityclass", IMPORTANT, "--ignore-not-found")


def test_a_preempted_worker_saves_first_and_the_run_goes_on_from_there(kube: Kube, important: str) -> None:
    """Of a node of two CPUs a worker takes more than half, so the job of higher priority finds no room beside it."""
    resources = {"requests": {"cpu": "1100m", "memory": "300Mi"}, "limits": {"memory": "1Gi"}}
    kube.apply(
        *script_job("lesser", steps=100_000, step_seconds=0.2, resources=resources, checkpoint={"interval": "1h"})
    )
    running_past(kube, "lesser", 20)
    before = step_of(kube, "lesser")
    kube.apply(
        *script_job("greater", steps=20, step_seconds=0.1, workers=1, resources=resources, priorityClassName=important)
    )
    wait_for(
        "the job of higher priority ends",
        lambda: condition(kube.get("trainingjob", "greater"), "Succeeded")["status"] == "True",
        seconds=90,
    )
    kube.delete("trainingjob", "greater")

    def again() -> Manifest | None:
        status: Manifest = kube.get("trainingjob", "lesser")["status"]
        resumed = status.get("progress", {}).get("resumedFromStep")
        return status if resumed and status["progress"]["step"] > resumed else None

    status = wait_for("the other goes on", again, seconds=90)
    assert status["progress"]["resumedFromStep"] >= before, "it saved when it was told to go, not an hour before"
    assert status["restarts"] == 0
    assert len(pods_of(kube, "lesser")) == 3
    print(f"preempted: {status['lastRestart']}")  # noqa: T201 - the figure
    kube.delete("trainingjob", "lesser")
