"""The installation itself: two replicas in two zones, silence when nothing changes, upgrades that hurt nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cluster.kubectl import Kube, wait_for
from cluster.release import SYSTEM_NAMESPACE, Release, leader_pod
from tests.e2e.installation import Zones, previous_chart, writes_by_operator
from tests.e2e.resources import gpu_job, script_job
from tests.e2e.test_training import finished, pods_of, running_past

IDLE_RESOURCES = 200


def test_the_two_replicas_are_in_two_zones(kube: Kube, zones: Zones) -> None:
    pods = kube.within(SYSTEM_NAMESPACE).list("pods", "app.kubernetes.io/component=operator")
    assert len(pods) == 2
    assert len({zones.of_node(pod["spec"]["nodeName"]) for pod in pods}) == 2


def test_the_charts_own_tests_pass(release: Release) -> None:
    release.test()


def test_an_upgrade_and_a_rollback_leave_running_jobs_alone(kube: Kube, release: Release) -> None:
    release.install(previous_chart())
    kube.apply(*script_job("through", steps=150, step_seconds=0.3))
    running_past(kube, "through", 3)
    before = {name: pod["metadata"]["uid"] for name, pod in pods_of(kube, "through").items()}
    release.install(values={"operator.podAnnotations.upgrade": "yes"})
    release.rollback()
    release.install()
    after = {name: pod["metadata"]["uid"] for name, pod in pods_of(kube, "through").items()}
    assert before == after
    job = wait_for("the run ends", lambda: finished(kube, "through"), seconds=180)
    assert job["status"]["attempt"] == 1


@pytest.fixture
def idle(kube: Kube) -> Iterator[Kube]:
    """A namespace for the many."""
    client = kube.within("e2e-idle")
    client.run("delete", "namespace", client.namespace, "--ignore-not-found")
    client.run("create", "namespace", client.namespace)
    yield client
    client.run("delete", "namespace", client.namespace, "--wait=false")


def test_an_idle_minute_with_200_resources_writes_nothing(kube: Kube, idle: Kube) -> None:
    idle.apply(*[gpu_job(f"waiting-{number}") for number in range(IDLE_RESOURCES)])

    def settled() -> bool:
        jobs = idle.list("trainingjobs")
        said = [
            c for job in jobs for c in job.get("status", {}).get("conditions", []) if c["reason"] == "InsufficientGPU"
        ]
        return len(jobs) == IDLE_RESOURCES and len(said) >= IDLE_RESOURCES

    wait_for("every job says what it waits for", settled, seconds=120)
    leader = leader_pod(kube.within(SYSTEM_NAMESPACE))
    quiet_since = time.monotonic()
    writes = writes_by_operator(kube, leader)

    def a_quiet_minute() -> bool:
        nonlocal quiet_since, writes
        now = writes_by_operator(kube, leader)
        if now != writes:
            quiet_since, writes = time.monotonic(), now
        return time.monotonic() - quiet_since >= 60

    wait_for("a minute without one write", a_quiet_minute, seconds=150, every=5)
    assert leader_pod(kube.within(SYSTEM_NAMESPACE)) == leader
