"""Jobs whose workers run agents: a lost pod is replaced alone, and what the agents did is on record."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from controllers.runtime.objects import POD, REPORT, Manifest
from controllers.runtime.plan import Plan
from headrace.api.trainingjob import TrainingJob
from headrace.training.agent.preflight import Settings as Preflight
from headrace.training.agent.settings import Settings
from tests.unit.trainingjob.worlds import (
    NODES,
    NOW,
    ago,
    condition,
    ended,
    job,
    node,
    planned,
    pod,
    running,
    terminating,
    with_status,
)

JOB = job()
EPOCH = NOW.timestamp()


def reporting(item: Manifest, attempt: int = 1, **group: Any) -> Manifest:
    """Worker 0 says how the group is."""
    said = {"state": "Running", "round": attempt, "workers": 3, **group}
    item["metadata"].setdefault("annotations", {})[REPORT] = json.dumps({"attempt": attempt, "step": 7, "group": said})
    return item


def three(of: TrainingJob = JOB, **group: Any) -> list[Manifest]:
    first, *others = (running(pod(of, index)) for index in range(of.spec.num_workers))
    return [reporting(first, **group), *others]


def written(of: TrainingJob) -> Any:
    return planned(of, three(of)).status


def under_way(of: TrainingJob = JOB) -> TrainingJob:
    return with_status(of, written(of))


def made(plan: Plan) -> list[Manifest]:
    return [item.manifest for item in plan.applies if item.type == POD]


def agent(item: Manifest) -> Settings:
    env = {entry["name"]: entry.get("value", "") for entry in item["spec"]["containers"][0]["env"]}
    return Settings.read(env)


def test_an_agent_is_told_what_it_needs() -> None:
    of = job(restartPolicy={"maxRestarts": 4, "window": "30m", "hangTimeout": "90s"})
    told = agent(made(planned(of))[1])
    assert (told.index, told.workers, told.attempt) == (1, 3, 1)
    assert (told.max_restarts, told.window, told.hang_timeout) == (4, 1800, 90)
    assert told.coordinator == "digits-worker-0.digits-workers.team.svc.cluster.local"


@pytest.mark.parametrize("index", [0, 1])
def test_a_deleted_pod_is_made_anew_and_the_others_stay(index: int) -> None:
    pods = three()
    leaving = [terminating(item) if i == index else item for i, item in enumerate(pods)]
    plan = planned(under_way(), leaving)
    assert not plan.deletes
    assert made(plan) == []
    assert condition(plan, "Ready")["reason"] == "WorkerDeleted"
    assert "the other pods stay" in condition(plan, "Ready")["message"]

    gone = [item for i, item in enumerate(pods) if i != index]
    plan = planned(with_status(JOB, plan.status), gone)
    (new,) = made(plan)
    assert new["metadata"]["name"] == f"digits-worker-{index}"
    assert new["metadata"]["labels"]["headrace.dev/attempt"] == "1", "it joins the others' pods"
    assert agent(new).attempt == 2, "which begin their second attempt with it"
    assert not plan.deletes


def test_pods_of_a_lost_node_are_replaced_at_once_and_alone() -> None:
    nodes = [node("node-a", ready="Unknown"), *NODES[1:]]
    plan = planned(under_way(), three(), nodes)
    assert [(item.key.name, item.grace_period_seconds) for item in plan.deletes] == [("digits-worker-0", 0)]
    assert condition(plan, "Ready")["reason"] == "NodeLost"


def test_an_agent_that_was_told_to_stop_is_replaced() -> None:
    pods = three()
    ended(pods[1], 143, at=5)
    plan = planned(under_way(), pods)
    assert [item.key.name for item in plan.deletes] == ["digits-worker-1"]


def test_a_worker_that_failed_for_good_ends_the_attempt_of_all() -> None:
    pods = three(restarts=1, recent=[EPOCH - 60])
    ended(pods[1], 1, message="error: no such column", at=5)
    ended(pods[0], 143, at=4)
    ended(pods[2], 143, at=4)
    of = job(restartPolicy={"maxRestarts": 1})
    plan = planned(under_way(of), pods)
    assert condition(plan, "Failed")["reason"] == "RestartLimitReached"
    assert "no such column" in condition(plan, "Failed")["message"]
    assert "within 1h" in condition(plan, "Failed")["message"]


def test_a_hang_that_nothing_mends_is_named() -> None:
    pods = three()
    ended(pods[1], 124, message="error: no step for 60 s: rank 1 (worker 1) is behind", at=5)
    plan = planned(under_way(), [pods[0], pods[1], ended(pods[2], 143, at=4)], later=5)
    assert condition(plan, "Restarting")["reason"] == "WorkerHung"
    assert "rank 1 (worker 1) is behind" in condition(plan, "Restarting")["message"]


def test_a_pod_that_is_lost_after_others_have_finished_restarts_all() -> None:
    pods = three()
    ended(pods[2], 0)
    plan = planned(under_way(), pods[1:])
    assert condition(plan, "Restarting")["status"] == "True"
    assert made(plan) == []


def test_what_the_agents_did_is_on_record() -> None:
    told: dict[str, Any] = {
        "round": 2,
        "restarts": 1,
        "recent": [EPOCH - 8.3],
        "reason": "WorkerFailed",
        "message": "rank 1: boom",
    }
    between = planned(under_way(), three(attempt=2, **told | {"state": "Gathering", "round": 1}))
    assert condition(between, "Ready")["reason"] == "WorkerFailed"
    assert condition(between, "Restarting")["status"] == "True"

    plan = planned(under_way(), three(attempt=2, **told))
    assert plan.status is not None
    assert (plan.status["attempt"], plan.status["podAttempt"], plan.status["restarts"]) == (2, 1, 1)
    assert plan.status["recentRestarts"] == ["2026-01-01T11:59:51Z"]
    assert plan.status["lastRestart"]["message"] == "rank 1: boom"
    assert [(event.type, event.reason) for event in plan.events] == [("Warning", "WorkerFailed")]
    assert not plan.deletes

    after = planned(with_status(JOB, plan.status), three(attempt=2, **told, recovered=3.4))
    assert [event.note for event in after.events] == ["attempt 2: the next step came 3.4 s after the failure"]
    assert planned(with_status(JOB, after.status), three(attempt=2, **told, recovered=3.4)).events == []


def test_restarts_outside_the_window_are_forgotten() -> None:
    status = {"attempt": 5, "restarts": 4, "recentRestarts": [ago(4000), ago(3000)]}
    of = job(status=status, restartPolicy={"maxRestarts": 2})
    (new, *_) = made(planned(of, later=0))
    assert agent(new).recent == (EPOCH - 3000,)
    pods = three(of)
    for item in pods:
        item["metadata"]["labels"]["headrace.dev/attempt"] = "5"
        ended(item, 137, at=5)
    plan = planned(of, pods)
    assert plan.status is not None
    assert condition(plan, "Restarting")["status"] == "True", "one of two in the hour"
    assert plan.status["recentRestarts"] == [ago(3000), ago(0)]
    assert plan.status["restarts"] == 5


def test_status_names_ranks_as_the_agents_ordered_them() -> None:
    plan = planned(under_way(), three(order=[0, 2, 1]))
    assert plan.status is not None
    assert [(place["rank"], place["pod"][-1]) for place in plan.status["placement"]] == [(0, "0"), (1, "2"), (2, "1")]


def test_a_lone_worker_goes_on_in_a_new_pod() -> None:
    of = job(numWorkers=1)
    begun = under_way(of)
    first = made(planned(begun, []))[0]
    assert agent(first).attempt == 2
    second = running(pod(of, 0))
    second["metadata"]["annotations"]["headrace.dev/first-round"] = "2"
    starting = with_status(of, planned(begun, [second]).status)
    assert starting.status is not None
    assert starting.status.attempt == 2
    assert agent(made(planned(starting, [], later=30))[0]).attempt == 3


def test_a_report_that_is_none_disturbs_nothing() -> None:
    pods = three()
    pods[0]["metadata"]["annotations"][REPORT] = json.dumps({"attempt": 1, "group": {"state": "Dancing"}})
    plan = planned(under_way(), pods)
    assert not plan.deletes
    assert timedelta(0) <= (plan.requeue_after or timedelta(0))


def test_pods_that_are_lost_again_and_again_are_made_with_pauses() -> None:
    pods = three(attempt=5, round=5)
    running_well = with_status(JOB, planned(under_way(), pods).status)
    plan = planned(running_well, pods[:2])
    assert made(plan) == []
    assert plan.requeue_after == timedelta(seconds=10)
    (new,) = made(planned(with_status(JOB, plan.status), pods[:2], later=10))
    assert agent(new).attempt == 6


def test_a_straggler_is_named_with_its_place() -> None:
    plan = planned(under_way(), three(stragglers={"2": 3.0}))
    message = condition(plan, "Straggler")["message"]
    assert "digits-worker-2 (rank 2, node node-c in zone c) takes about 3 times as long" in message
    assert [event.reason for event in plan.events] == ["WorkerSlow"]
    after = planned(with_status(JOB, plan.status), three())
    assert after.status is not None
    assert "Straggler" not in [item["type"] for item in after.status["conditions"]]


def test_the_agents_are_told_what_is_asked_of_links() -> None:
    plan = planned(job(topology={"preflight": {"minBandwidth": "100Mi", "maxRoundTrip": "5ms", "onSlow": "Fail"}}))
    assert agent(made(plan)[0]).preflight == Preflight(100 * 2**20, 0.005, True, 120.0)
    assert agent(made(planned(job()))[0]).preflight is None


def test_measured_links_are_in_the_placement_and_a_slow_one_is_named() -> None:
    links = [[0, 1, 0.21, 9.4e8], [1, 2, 0.3, 1e6], [2, 0, 0.2, 9e8]]
    plan = planned(under_way(), three(links=links, slowLinks="worker 1 (node node-b) to worker 2 carries 1 MB/s"))
    assert plan.status is not None
    assert [place["bandwidth"] for place in plan.status["placement"]] == ["940MB/s", "1MB/s", "900MB/s"]
    assert plan.status["placement"][0]["roundTrip"] == "0.21ms"
    assert "worker 2 carries 1 MB/s" in condition(plan, "SlowLink")["message"]
    assert condition(plan, "Ready")["status"] == "True"
    assert [event.reason for event in plan.events] == ["LinkSlow"]


def test_a_dead_link_keeps_the_job_from_ready_and_counts_as_no_restart() -> None:
    dead = "no connection from worker 0 to worker 1"
    said: dict[str, Any] = {"state": "Gathering", "round": 0, "reason": "LinkDead", "message": dead}
    plan = planned(JOB, three(**said))
    assert condition(plan, "Ready")["reason"] == "LinkDead"
    assert "tried again till topology.preflight.timeout" in condition(plan, "Ready")["message"]
    assert condition(plan, "Restarting")["status"] == "False"


def test_a_link_that_stays_dead_fails_the_job_with_its_words() -> None:
    first, *others = three()
    pods = [ended(first, 80, message="error: no connection from worker 0 to worker 1"), *others]
    plan = planned(under_way(), pods, later=10)
    assert condition(plan, "Failed")["reason"] == "LinkUnusable"
    assert condition(plan, "Failed")["message"] == "topology.preflight: no connection from worker 0 to worker 1"


def test_a_worker_that_does_not_reach_the_others_is_replaced() -> None:
    pods = three(state="Gathering", missing=[2], reason="WorkerHung", message="worker 2 does not answer")
    waiting = with_status(JOB, planned(under_way(), pods).status)
    assert not planned(waiting, pods, later=50).deletes
    plan = planned(waiting, pods, later=61)
    assert [item.key.name for item in plan.deletes] == ["digits-worker-2"]
    assert condition(plan, "Ready")["reason"] == "WorkerUnreachable"


ELASTIC: dict[str, Any] = {"numWorkers": 3, "minWorkers": 2, "maxWorkers": 4}


def test_an_elastic_job_says_how_many_it_may_have() -> None:
    plan = planned(job(**ELASTIC | {"numWorkers": 2}))
    told = agent(made(plan)[0])
    assert (told.workers, told.min_workers, told.max_workers) == (2, 2, 4)


def test_an_elastic_job_is_scaled_up_without_a_restart() -> None:
    plan = planned(with_status(job(**ELASTIC | {"numWorkers": 4}), written(job(**ELASTIC))), three())
    assert [item["metadata"]["name"] for item in made(plan)] == ["digits-worker-3"]
    assert not plan.deletes


def test_a_worker_too_many_may_save_before_it_goes() -> None:
    smaller = with_status(job(**ELASTIC | {"numWorkers": 2}), written(job(**ELASTIC)))
    plan = planned(smaller, three())
    assert [(item.key.name, item.grace_period_seconds) for item in plan.deletes] == [("digits-worker-2", None)]


def test_an_elastic_job_ends_with_those_that_took_part() -> None:
    of = job(**ELASTIC)
    first, second, _ = three(of, workers=2, order=[0, 1], state="Ended")
    waiting = planned(under_way(of), [ended(first, 0), second, pod(of, 2)])
    assert condition(waiting, "Succeeded")["status"] == "False", "the second is about to say so too"
    plan = planned(under_way(of), [first, ended(second, 0), pod(of, 2)])
    assert condition(plan, "Succeeded")["status"] == "True"
    assert "2 workers" in condition(plan, "Succeeded")["message"]
