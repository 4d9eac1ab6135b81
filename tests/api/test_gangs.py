"""Gangs on a real scheduler with simulated nodes: all or nothing, by the cluster's own means and by the queue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.controlplane import ControlPlane
from tests.api.gangs import Team, operated, simulated


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with simulated(tmp_path_factory.mktemp("gangs")) as plane:
        yield plane


def one_runs_and_one_waits(team: Team) -> str:
    """Two gangs of which each needs more than half of the cluster; returns the name of the one that waits."""
    team.create("one", 6, 20, topology={"zoneSpread": "None"})
    team.create("two", 6, 20, topology={"zoneSpread": "None"})
    first = str(team.until("one of the two runs", lambda: next((n for n in ("one", "two") if team.runs(n)), None)))
    other = "two" if first == "one" else "one"
    team.until("the other says why it waits", lambda: team.condition(other, "Scheduled")["reason"] == "InsufficientCPU")
    assert team.bound(first) == 6
    assert team.bound(other) == 0, "half of a gang holds nodes"
    return other


def test_two_gangs_do_not_hold_half_each_where_the_cluster_schedules_gangs(plane: ControlPlane) -> None:
    """volcano#3373."""
    with operated(plane, "native", "Auto") as team:
        other = one_runs_and_one_waits(team)
        path = "/apis/scheduling.k8s.io/v1alpha2/namespaces/native/podgroups"
        assert {item["metadata"]["name"] for item in team.rest("GET", path).body["items"]} == {"one", "two"}
        assert len(team.pods(other)) == 6, "they wait in the scheduler"
        team.patch("two" if other == "one" else "one", {"suspend": True})
        team.until("what that one leaves is the other's", lambda: team.runs(other))


def test_the_queue_starts_gangs_whole_in_order_and_a_higher_priority_takes_their_place(plane: ControlPlane) -> None:
    with operated(plane, "queue", "Queue") as team:
        other = one_runs_and_one_waits(team)
        running = "two" if other == "one" else "one"
        assert not team.pods(other), "a gang in the queue has no pods"
        queued = team.condition(other, "Queued")
        assert queued["status"] == "True"
        assert "6 workers ask for cpu=20 each; there is room for 3 of them now" in queued["message"]
        team.create("small", 3, 20)
        team.until("a small one that delays nobody runs", lambda: team.runs("small"))
        team.create("late", 3, 5)
        team.until("another stands behind", lambda: team.condition("late", "Queued")["reason"] == "WaitingInQueue")

        priority = {"metadata": {"name": "urgent"}, "value": 1000}
        kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
        assert team.rest("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", kind | priority).accepted
        team.create("urgent", 6, 20, topology={"zoneSpread": "None"}, priorityClassName="urgent")
        team.until("the urgent one runs", lambda: team.runs("urgent"))
        preempted = team.until("it took the place", lambda: team.condition(running, "Preempted"))
        assert "queue/urgent has a higher priority" in preempted["message"]
        assert team.condition(other, "Queued")["status"] == "True"

        team.delete("urgent")
        team.until("the older one comes first again", lambda: team.runs("one"))


def test_a_gang_that_the_scheduler_started_in_part_lets_go(plane: ControlPlane) -> None:
    with operated(plane, "nobody", "None") as team:
        spec = {"topology": {"zoneSpread": "None"}, "scheduling": {"timeout": "4s"}}
        team.create("much", 10, 20, **spec)
        team.until("nine of ten have nodes", lambda: team.bound("much") == 9)
        team.until("all let go", lambda: not team.pods("much"), seconds=30)
        queued = team.condition("much", "Queued")
        assert queued["reason"] == "GangTimeout"
        assert "9 of 10 workers held nodes" in queued["message"]
        assert "Insufficient cpu" in queued["message"]


def test_a_quota_that_has_room_for_a_part_is_named_with_what_is_missing(plane: ControlPlane) -> None:
    with operated(plane, "quota", "Auto") as team:
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}}
        body = quota | {"spec": {"hard": {"requests.cpu": "10"}}}
        assert team.rest("POST", "/api/v1/namespaces/quota/resourcequotas", body).accepted
        path = "/api/v1/namespaces/quota/resourcequotas/team"
        team.until("the quota counts", lambda: team.rest("GET", path).body.get("status", {}).get("used"))
        team.create("much", 4, 3)
        team.until("the quota is named", lambda: team.condition("much")["reason"] == "QuotaExceeded")
        assert (
            "ResourceQuota team: requests.cpu is short of 2 (asks for 3, 9 of 10 are used)"
            in team.condition("much")["message"]
        )


def test_suspended_jobs_hold_nothing_and_finished_ones_are_deleted(plane: ControlPlane) -> None:
    with operated(plane, "life", "Auto") as team:
        team.create("run", 2, 1, ttlSecondsAfterFinished=0)
        team.until("it runs", lambda: team.runs("run"))
        team.patch("run", {"suspend": True})
        team.until("its pods leave", lambda: not team.pods("run"))
        assert team.condition("run", "Suspended")["status"] == "True"
        assert team.condition("run")["reason"] == "Suspended"
        team.patch("run", {"suspend": False})
        team.until("it runs again", lambda: team.runs("run"))
        assert {pod["metadata"]["labels"]["headrace.dev/attempt"] for pod in team.pods("run")} == {"2"}
        assert team.condition("run", "Suspended")["reason"] == "JobResumed"
        for pod in team.pods("run"):
            name = pod["metadata"]["name"]
            ended = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": pod["status"]["startTime"]}}
            container = {
                "name": "worker",
                "image": "x",
                "imageID": "x",
                "ready": False,
                "restartCount": 0,
                "state": ended,
            }
            status = {"status": {"phase": "Succeeded", "containerStatuses": [container]}}
            path = f"/api/v1/namespaces/life/pods/{name}/status"
            assert team.rest("PATCH", path, status, content_type="application/strategic-merge-patch+json").accepted
        team.until("the job is gone", lambda: not team.exists("run"))
