"""From the first pod to the end: what is written, what is deleted, what is said, and what is left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controllers.runtime.controller import Controller
from controllers.runtime.objects import POD, REPORT, SERVICE, Manifest
from controllers.runtime.plan import Plan
from controllers.trainingjob.controller import TrainingJobController
from controllers.trainingjob.observed import Observed
from controllers.trainingjob.plan import backoff, plan
from headrace.api.crd import UNSEEN
from headrace.api.trainingjob import TrainingJob, TrainingJobStatus
from tests.unit.trainingjob.worlds import (
    NODES,
    NOW,
    SETTINGS,
    ago,
    condition,
    conditions,
    ended,
    job,
    node,
    observed,
    planned,
    pod,
    running,
    scheduled,
    terminating,
    unscheduled,
    waiting,
    with_status,
)

JOB = job(image="team/trainer:1")
"""In an image of somebody else there are no agents; see test_agents."""
NOTHING = Plan(deletes=[])


def pods(*states: Any, of: TrainingJob = JOB, attempt: int = 1, age: float = 60) -> list[Manifest]:
    """One pod per state: a function of the fresh pod."""
    return [state(pod(of, index, attempt, age=age)) for index, state in enumerate(states)]


def fresh(item: Manifest) -> Manifest:
    return item


def names(plan: Plan) -> list[str]:
    return [item.manifest["metadata"]["name"] for item in plan.applies if item.type == POD]


def reasons(plan: Plan) -> list[str]:
    return [event.reason for event in plan.events]


def status(plan: Plan) -> Mapping[str, Any]:
    assert plan.status is not None
    return plan.status


def written(of: TrainingJob) -> TrainingJobStatus:
    assert of.status is not None
    return of.status


def begun(of: TrainingJob = JOB) -> TrainingJob:
    """Workers are being started and that is on record."""
    return with_status(of, planned(of, pods(*[fresh] * of.spec.num_workers, of=of)).status)


def under_way(of: TrainingJob = JOB) -> TrainingJob:
    """Three workers run and that is on record."""
    count = of.spec.num_workers
    return with_status(of, planned(begun(of), pods(*[running] * count, of=of)).status)


def test_the_controller_is_what_the_runtime_expects() -> None:
    controller: Controller[TrainingJob, Observed] = TrainingJobController(SETTINGS)
    assert POD in controller.owns
    assert controller.rules[0].resource_names == ("headrace-worker",)


def test_a_new_job_gets_its_workers() -> None:
    plan = planned(JOB)
    assert names(plan) == ["digits-worker-0", "digits-worker-1", "digits-worker-2"]
    assert SERVICE in [item.type for item in plan.applies]
    assert plan.status is None
    assert plan.requeue_after == timedelta(seconds=3)


def test_workers_that_start_at_once_are_one_write_and_one_event() -> None:
    plan = planned(JOB, pods(running, running, running, age=2))
    assert condition(plan, "Ready")["status"] == "True"
    assert reasons(plan) == ["Running"]
    assert status(plan)["startTime"] == "2026-01-01T11:59:58Z"


def test_a_start_that_takes_longer_is_said() -> None:
    assert planned(JOB, pods(running, scheduled, fresh, age=2)).status is None
    plan = planned(JOB, pods(fresh, fresh, fresh, age=3))
    assert reasons(plan) == ["Started"]
    assert (status(plan)["attempt"], status(plan)["restarts"]) == (1, 0)
    assert status(plan)["workers"] == {"total": 3, "ready": 0, "succeeded": 0, "summary": "0/3"}
    assert condition(plan, "Ready")["reason"] == "Starting"
    assert status(plan)["storageUri"] == "s3://headrace/team/digits"


def test_a_lone_worker_has_no_service() -> None:
    assert SERVICE not in [item.type for item in planned(job(numWorkers=1)).applies]


def test_only_missing_workers_are_made() -> None:
    plan = planned(begun(), pods(running, running))
    assert names(plan) == ["digits-worker-2"]


def test_a_job_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    going = JOB.model_copy(update={"metadata": JOB.metadata.model_copy(update={"deletion_timestamp": "x"})})
    assert planned(going) == Plan()


def test_running() -> None:
    plan = planned(begun(), pods(running, running, running))
    assert condition(plan, "Ready")["status"] == "True"
    assert condition(plan, "Running")["status"] == "True"
    assert condition(plan, "Scheduled")["message"] == "3 workers in zones a, b, c"
    assert status(plan)["workers"]["summary"] == "3/3"
    assert [place["zone"] for place in status(plan)["placement"]] == ["a", "b", "c"]
    assert reasons(plan) == ["Running"]
    assert plan.requeue_after is None


def test_nothing_is_said_or_asked_for_while_nothing_changes() -> None:
    there = under_way()
    plan = planned(there, pods(running, running, running), later=3600)
    assert plan.status == written(there).manifest()
    assert not plan.events
    assert not plan.deletes
    assert plan.requeue_after is None


def test_a_busy_api_server_is_not_told_how_far_each_start_is() -> None:
    """A thousand jobs at once: the runtime's patience grows with the API server's latency."""
    starting = pods(running, scheduled, fresh, age=12)
    busy = replace(observed(starting), patience=timedelta(seconds=20))
    assert plan(JOB, busy, NOW, SETTINGS).status is None
    assert plan(JOB, busy, NOW, SETTINGS).requeue_after == timedelta(seconds=8)
    due = plan(JOB, replace(busy, patience=timedelta(seconds=12)), NOW, SETTINGS)
    assert due.status is not None
    assert due.status_can_wait == timedelta(seconds=12), "others may have the like to say"


def test_verdicts_and_progress_never_wait_for_what_others_have_to_say() -> None:
    stuck = planned(JOB, pods(lambda item: waiting(item, "ErrImagePull", "not found"), fresh, fresh, age=60))
    assert stuck.status_can_wait is None
    there = under_way()
    assert planned(there, pods(running, running, running), later=3600).status_can_wait is None


@pytest.mark.parametrize("before", [None, UNSEEN], ids=["no status", "the default"])
def test_a_job_that_cannot_start_says_so_at_once(before: Any) -> None:
    new = JOB if before is None else with_status(JOB, before)
    plan = planned(new, pods(lambda item: waiting(item, "ErrImagePull", "not found"), fresh, fresh, age=0))
    assert condition(plan, "Ready")["reason"] == "ImagePullFailed"
    assert status(plan)["attempt"] == 1


def test_what_is_wrong_before_the_first_worker_is_taken_back_at_once() -> None:
    """The runtime said that the workers could not be made; now they are."""
    refused = {"type": "Ready", "status": "False", "reason": "QuotaExceeded", "lastTransitionTime": ago(9)}
    plan = planned(with_status(JOB, {"conditions": [refused]}))
    assert condition(plan, "Ready")["reason"] == "Starting"


def test_the_first_moments_are_gathered_into_one_write() -> None:
    there = begun()
    half = pods(running, scheduled, fresh, age=1)
    held = planned(there, half)
    assert held.status is None
    assert held.requeue_after == timedelta(seconds=2)
    assert not held.events
    late = planned(there, pods(running, scheduled, fresh, age=3))
    assert status(late)["workers"]["summary"] == "1/3"
    whole = planned(there, pods(running, running, running, age=1))
    assert condition(whole, "Running")["status"] == "True"


def test_what_is_wrong_is_said_at_once() -> None:
    there = begun()
    plan = planned(there, pods(running, running, lambda item: waiting(item, "ErrImagePull", "not found"), age=1))
    assert condition(plan, "Ready")["reason"] == "ImagePullFailed"
    assert reasons(plan) == ["ImagePullFailed"]
    again = with_status(there, plan.status)
    later = pods(running, running, lambda item: waiting(item, "ErrImagePull", "not found"), age=60)
    assert reasons(planned(again, later)) == []


def test_unschedulable_is_both_a_condition_and_an_event() -> None:
    stuck = job(numWorkers=1, gpu={"count": 1})
    said = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    plan = planned(begun(stuck), [unscheduled(pod(stuck, 0), said)])
    for type_ in ("Scheduled", "Ready"):
        assert condition(plan, type_)["reason"] == "InsufficientGPU"
        assert "node-a" in condition(plan, type_)["message"]
    assert reasons(plan) == ["InsufficientGPU"]
    assert plan.requeue_after == timedelta(seconds=30)


def test_success() -> None:
    there = under_way()
    done = pods(*[lambda item: ended(item, 0, at=7)] * 3)
    done[0]["metadata"]["annotations"][REPORT] = (
        '{"step": 400, "steps": 400, "percent": 100, "metrics": {"accuracy": "0.97"}, "modelUri": "s3://m/model.onnx"}'
    )
    plan = planned(there, done)
    assert condition(plan, "Succeeded")["status"] == "True"
    assert condition(plan, "Ready")["status"] == "True"
    assert condition(plan, "Failed")["status"] == "False"
    assert status(plan)["modelUri"] == "s3://m/model.onnx"
    assert status(plan)["metrics"] == {"accuracy": "0.97"}
    assert status(plan)["completionTime"] == "2026-01-01T11:59:53Z"
    assert status(plan)["workers"] == {"total": 3, "ready": 0, "succeeded": 3, "summary": "3/3"}
    assert reasons(plan) == ["Succeeded"]
    assert planned(with_status(there, plan.status), done) == NOTHING
    assert planned(with_status(there, plan.status), []) == NOTHING, "an ended job whose pods are cleaned up stays ended"


def test_a_failure_is_first_put_on_record_and_then_cleared_away() -> None:
    there = under_way()
    hurt = pods(running, lambda item: ended(item, 1, message="boom"), running)
    record = planned(there, hurt)
    assert not record.deletes
    assert not record.applies
    assert (status(record)["attempt"], status(record)["restarts"]) == (2, 1)
    assert condition(record, "Restarting")["status"] == "True"
    assert condition(record, "Scheduled")["status"] == "False"
    assert "boom" in condition(record, "Ready")["message"]
    assert reasons(record) == ["WorkerFailed", "Restarting"]
    assert record.requeue_after is not None

    there = with_status(there, record.status)
    clear = planned(there, hurt)
    assert [item.key.name for item in clear.deletes] == ["digits-worker-0", "digits-worker-1", "digits-worker-2"]
    assert all(item.uid and item.grace_period_seconds == 5 for item in clear.deletes)
    assert clear.status is None
    assert not clear.events

    going = [terminating(item) for item in hurt]
    assert not planned(there, going).deletes
    assert not planned(there, going[:1]).applies, "the next attempt waits for the last pod"

    start = planned(there, [])
    assert names(start) == ["digits-worker-0", "digits-worker-1", "digits-worker-2"]
    labels = {item.manifest["metadata"]["labels"]["headrace.dev/attempt"] for item in start.applies if item.type == POD}
    assert labels == {"2"}
    assert condition(start, "Restarting")["status"] == "False"
    assert reasons(start) == ["Started"]
    assert status(start)["startTime"] == status(record)["startTime"]


def test_the_same_record_twice_counts_once() -> None:
    there = under_way()
    hurt = pods(running, lambda item: ended(item, 1), running)
    assert planned(there, hurt).status == planned(there, hurt).status


@pytest.mark.parametrize("seen", [0, 1])
def test_a_status_that_lags_behind_the_pods_is_caught_up_with(seen: int) -> None:
    second = [running(pod(JOB, index, 2, restarts=1)) for index in range(3)]
    plan = planned(JOB if seen == 0 else under_way(), second)
    assert (status(plan)["attempt"], status(plan)["restarts"]) == (2, 1)
    assert not plan.deletes


def test_a_lost_worker_costs_no_restart() -> None:
    record = planned(under_way(), pods(running, terminating, running))
    assert (status(record)["attempt"], status(record)["restarts"]) == (2, 0)
    assert "counts as no restart" in condition(record, "Restarting")["message"]


def test_a_force_deleted_worker_is_noticed_by_its_absence() -> None:
    there = under_way()
    record = planned(there, [item for item in pods(running, running, running) if "-1" not in item["metadata"]["name"]])
    assert condition(record, "Restarting")["reason"] == "WorkerDeleted"


def test_pods_of_a_lost_node_are_removed_at_once() -> None:
    there = under_way()
    alive = pods(running, running, running)
    conditions(alive[1], Ready="False")
    nodes = [NODES[0], node("node-b", "b", ready="Unknown"), NODES[2]]
    record = planned(there, alive, nodes)
    assert condition(record, "Restarting")["reason"] == "NodeLost"
    there = with_status(there, record.status)
    clear = planned(there, alive, nodes)
    assert [item.grace_period_seconds for item in clear.deletes] == [5, 0, 5]
    stuck = planned(there, [terminating(alive[1])], nodes)
    assert [(item.key.name, item.grace_period_seconds) for item in stuck.deletes] == [("digits-worker-1", 0)]


def test_the_limit_of_restarts() -> None:
    limited = job(image="team/trainer:1", restartPolicy={"maxRestarts": 0})
    there = under_way(limited)
    hurt = pods(running, lambda item: ended(item, 1, message="boom"), running, of=limited)
    last = planned(there, hurt)
    assert condition(last, "Failed")["status"] == "True"
    assert condition(last, "Failed")["reason"] == "RestartLimitReached"
    assert condition(last, "Stalled")["status"] == "True"
    assert "boom" in condition(last, "Failed")["message"]
    assert status(last)["restarts"] == 0
    there = with_status(there, last.status)
    after = planned(there, hurt)
    assert [item.key.name for item in after.deletes] == ["digits-worker-0", "digits-worker-2"], (
        "the failed one keeps its log"
    )
    assert after.status is None
    assert not after.applies


def test_a_loss_does_not_run_into_the_limit() -> None:
    limited = job(image="team/trainer:1", restartPolicy={"maxRestarts": 0})
    record = planned(under_way(limited), pods(running, terminating, running, of=limited))
    assert condition(record, "Failed")["status"] == "False"
    assert status(record)["attempt"] == 2


def test_a_configuration_that_cannot_work_fails_at_once() -> None:
    plan = planned(under_way(), pods(running, lambda item: ended(item, 78, message="no column 'y'", at=0), running))
    assert condition(plan, "Failed")["reason"] == "InvalidConfiguration"
    assert "no column 'y'" in condition(plan, "Failed")["message"]


@pytest.mark.parametrize(
    ("reason", "attempt", "restarts", "seconds"),
    [
        ("WorkerFailed", 2, 1, 0),
        ("WorkerFailed", 3, 2, 2),
        ("OutOfMemory", 4, 3, 4),
        ("WorkerFailed", 6, 5, 16),
        ("WorkerFailed", 8, 7, 60),
        ("ScriptNotCloned", 5001, 5000, 60),
        ("NodeLost", 2, 0, 0),
        ("WorkerDeleted", 4, 0, 0),
        ("WorkerEvicted", 5, 0, 10),
        ("WorkerEvicted", 5, 4, 0),
    ],
)
def test_backoff(reason: str, attempt: int, restarts: int, seconds: float) -> None:
    assert backoff(reason, attempt, restarts) == timedelta(seconds=seconds)


def test_the_next_attempt_waits_its_pause() -> None:
    there = under_way()
    there = with_status(there, {**written(there).manifest(), "attempt": 3, "restarts": 2})
    hurt = [ended(pod(JOB, index, 3, restarts=2), 1) for index in range(3)]
    record = planned(there, hurt)
    assert status(record)["restarts"] == 3
    assert "not before 4 s" in condition(record, "Ready")["message"]
    there = with_status(there, record.status)
    early = planned(there, [], later=1)
    assert early == Plan(requeue_after=timedelta(seconds=3))
    assert names(planned(there, [], later=4)) == ["digits-worker-0", "digits-worker-1", "digits-worker-2"]


def report(step: int, **more: Any) -> str:
    extra = "".join(f', "{name}": {value}' for name, value in more.items())
    return f'{{"step": {step}, "steps": 100, "percent": {step}, "loss": "0.5"{extra}}}'


def test_progress_is_what_rank_0_reports_and_stays_through_a_restart() -> None:
    there = under_way()
    alive = pods(running, running, running)
    alive[0]["metadata"]["annotations"][REPORT] = report(40)
    alive[1]["metadata"]["annotations"][REPORT] = report(99)
    there = with_status(there, planned(there, alive).status)
    assert written(there).progress.step == 40
    there = with_status(there, planned(there, [alive[0], terminating(alive[1]), alive[2]]).status)
    assert written(there).progress.step == 40


def test_resuming_is_an_event() -> None:
    there = under_way()
    second = [running(pod(JOB, index, 2)) for index in range(3)]
    second[0]["metadata"]["annotations"][REPORT] = report(41, resumedFromStep=40)
    plan = planned(there, second)
    assert "Resumed" in reasons(plan)
    assert reasons(planned(with_status(there, plan.status), second)) == []


def test_a_malformed_report_changes_nothing_but_says_so_once() -> None:
    there = under_way()
    alive = pods(running, running, running)
    alive[0]["metadata"]["annotations"][REPORT] = report(40)
    there = with_status(there, planned(there, alive).status)
    alive[0]["metadata"]["annotations"][REPORT] = '{"step": "many"}'
    plan = planned(there, alive)
    assert status(plan)["progress"]["step"] == 40
    assert "step" in condition(plan, "ReportMalformed")["message"]
    assert condition(plan, "Ready")["status"] == "True"
    assert reasons(plan) == ["MalformedReport"]
    assert reasons(planned(with_status(there, plan.status), alive)) == []


def test_transition_times_move_only_with_the_status() -> None:
    there = under_way()
    later = planned(there, pods(running, running, running), later=3600)
    assert condition(later, "Ready")["lastTransitionTime"] == "2026-01-01T12:00:00Z"


def test_an_ended_job_follows_the_generation_of_its_spec() -> None:
    there = under_way()
    done = planned(there, pods(*[lambda item: ended(item, 0)] * 3))
    edited = with_status(there, done.status)
    edited = edited.model_copy(update={"metadata": edited.metadata.model_copy(update={"generation": 2})})
    plan = planned(edited, [])
    assert status(plan)["observedGeneration"] == 2
    assert condition(plan, "Succeeded")["status"] == "True"
    assert not plan.applies


def test_an_ended_job_that_an_older_operator_misread_during_an_upgrade_says_again_what_it_came_to() -> None:
    done = with_status(under_way(), planned(under_way(), pods(*[lambda item: ended(item, 0)] * 3)).status)
    assert done.status is not None
    misread = [
        item.model_copy(update={"status": "False", "reason": "InvalidSpec", "message": "Extra inputs"})
        if item.type == "Ready"
        else item
        for item in done.status.conditions
    ]
    there = done.model_copy(update={"status": done.status.model_copy(update={"conditions": misread})})
    plan = planned(there, [])
    assert condition(plan, "Ready") == {**condition(plan, "Succeeded"), "type": "Ready"}
    assert planned(with_status(there, plan.status), []).status is None


def test_events_fit_the_api() -> None:
    """events.k8s.io/v1: a note is at most 1024 bytes."""
    hurt = pods(running, lambda item: ended(item, 1, message="ü" * 3000), running)
    assert all(len(event.note.encode()) <= 1024 for event in planned(under_way(), hurt).events)
