"""Suspending, letting go of half a group, standing in the queue, and being deleted after the end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from controllers.runtime.objects import POD, Manifest
from controllers.runtime.plan import Plan
from controllers.trainingjob.names import JOB
from controllers.trainingjob.observed import Admission, Observed
from controllers.trainingjob.plan import plan
from controllers.trainingjob.waiting import pause_after
from headrace.api.trainingjob import TrainingJob
from tests.unit.trainingjob.worlds import (
    NOW,
    SETTINGS,
    condition,
    ended,
    job,
    observed,
    planned,
    pod,
    running,
    scheduled,
    terminating,
    unscheduled,
    with_status,
)

BUSY = "0/3 nodes are available: 3 Insufficient cpu."


def group(of: TrainingJob, *states: Any, attempt: int = 1, age: float = 60) -> list[Manifest]:
    return [state(pod(of, index, attempt, age=age)) for index, state in enumerate(states)]


def under_way(**spec: Any) -> TrainingJob:
    """Three workers run and that is on record."""
    of = job(**spec)
    return with_status(of, planned(of, group(of, running, running, running)).status)


def suspend(of: TrainingJob, on: bool = True) -> TrainingJob:
    return of.model_copy(update={"spec": of.spec.model_copy(update={"suspend": on})})


def made(step: Plan) -> list[str]:
    return [item.manifest["metadata"]["name"] for item in step.applies if item.type == POD]


def after(of: TrainingJob, step: Plan) -> TrainingJob:
    """The job once the step's status is written."""
    return with_status(of, step.status) if step.status is not None else of


def in_queue(of: TrainingJob, pods: list[Manifest], admission: Admission) -> Plan:
    seen = observed(pods)
    return plan(of, Observed(seen.pods, seen.nodes, seen.cluster, admission=admission), NOW, SETTINGS)


def test_suspending_is_on_record_before_the_workers_are_asked_to_save_and_leave() -> None:
    of = suspend(under_way())
    pods = group(of, running, running, running)
    first = planned(of, pods)
    assert not first.deletes
    assert condition(first, "Suspended")["status"] == "True"
    assert condition(first, "Ready")["reason"] == "Suspended"
    assert condition(first, "Restarting")["status"] == "False"
    assert first.status is not None
    assert first.status["restarts"] == 0, "nobody's failure"
    assert first.status["workers"]["summary"] == "0/3"
    assert "startTime" not in first.status, "as a Job has it"
    assert [(event.type, event.reason) for event in first.events] == [("Normal", "Suspended")]

    second = planned(after(of, first), pods)
    assert {item.key.name for item in second.deletes} == {f"digits-worker-{n}" for n in range(3)}
    assert {item.grace_period_seconds for item in second.deletes} == {None}, "the pod's own time to save"

    leaving = [terminating(item) for item in group(of, running, running, running)]
    assert not planned(after(of, first), leaving).deletes
    done = planned(after(of, first))
    assert not made(done)
    assert done.status == first.status, "and nothing is written"
    assert not done.events


def test_resuming_starts_a_new_attempt_that_counts_as_no_restart() -> None:
    of = suspend(under_way())
    held = after(of, planned(of, group(of, running, running, running)))
    resumed = suspend(held, on=False)
    begun = planned(resumed)
    assert made(begun) == [f"digits-worker-{n}" for n in range(3)]
    assert "Started" in [event.reason for event in begun.events]
    pods = group(resumed, running, running, running, attempt=2, age=5)
    again = planned(after(resumed, begun), pods)
    assert again.status is not None
    assert (again.status["attempt"], again.status["restarts"]) == (2, 0)
    suspended = condition(again, "Suspended")
    assert (suspended["status"], suspended["reason"]) == ("False", "JobResumed")
    assert condition(again, "Ready")["status"] == "True"
    assert again.status["startTime"] >= pods[0]["metadata"]["creationTimestamp"]


def test_a_job_that_is_made_suspended_has_no_pods_and_begins_with_attempt_one() -> None:
    of = suspend(job())
    held = planned(of)
    assert not made(held)
    assert condition(held, "Suspended")["status"] == "True"
    begun = planned(suspend(after(of, held), on=False))
    assert {
        item.manifest["metadata"]["labels"]["headrace.dev/attempt"] for item in begun.applies if item.type == POD
    } == {"1"}


def test_a_run_that_has_just_finished_is_not_suspended_any_more() -> None:
    of = suspend(under_way())
    done = planned(of, [ended(item, 0) for item in group(of, running, running, running)])
    assert condition(done, "Succeeded")["status"] == "True"


def half(of: TrainingJob, age: float) -> list[Manifest]:
    return group(of, scheduled, scheduled, lambda item: unscheduled(item, BUSY), age=age)


def test_half_a_group_lets_go_after_the_timeout_and_says_what_is_missing() -> None:
    of = job(scheduling={"timeout": "2m"}, resources={"requests": {"cpu": "2"}})
    before = planned(of, half(of, age=119))
    assert condition(before, "Ready")["reason"] == "InsufficientCPU"
    assert before.requeue_after is not None
    assert before.requeue_after <= timedelta(seconds=1)
    of = after(of, before)

    late = planned(of, half(of, age=120))
    queued = condition(late, "Queued")
    assert (queued["status"], queued["reason"]) == ("True", "GangTimeout")
    for words in ("2 of 3 workers held nodes", "digits-worker-0", "scheduling.timeout=2m", "digits-worker-2"):
        assert words in queued["message"]
    assert late.status is not None
    assert late.status["requeueState"]["count"] == 1
    assert late.status["restarts"] == 0
    of = after(of, late)

    leaving = planned(of, half(of, age=121))
    assert {item.grace_period_seconds for item in leaving.deletes} == {5}, "nothing to save"
    pause = pause_after("job-uid", 1).total_seconds()
    waits = planned(of, later=pause - 2)
    assert not made(waits)
    assert not waits.events
    assert waits.requeue_after is not None
    assert timedelta(0) < waits.requeue_after <= timedelta(seconds=2)
    again = planned(of, later=pause)
    assert len(made(again)) == 3
    assert again.status is None or again.status["requeueState"]["count"] == 1, "counted until a group is whole"


def test_a_whole_group_forgets_that_it_let_go() -> None:
    of = job(scheduling={"timeout": "2m"})
    of = after(of, planned(of, half(of, age=200)))
    whole = planned(of, group(of, running, running, running, attempt=2, age=5))
    assert whole.status is not None
    assert "requeueState" not in whole.status


@pytest.mark.parametrize(
    ("states", "lets_go"),
    [
        ([scheduled, scheduled, scheduled], False),
        ([lambda item: unscheduled(item, BUSY)] * 3, False),
        ([running, running, lambda item: unscheduled(item, BUSY)], True),
        ([scheduled, lambda item: unscheduled(item, BUSY)], True),
        ([lambda item: unscheduled(item, BUSY)] * 2, True),
    ],
    ids=["images are slow", "nobody holds anything", "two hold a node", "one was not created", "two hold a quota"],
)
def test_only_a_group_that_keeps_something_from_others_lets_go(states: list[Any], lets_go: bool) -> None:
    of = job()
    step = planned(of, group(of, *states, age=301))
    assert (step.status is not None and condition(step, "Ready")["reason"] == "GangTimeout") is lets_go


def test_pauses_grow_and_differ_between_jobs() -> None:
    # 30 s doubled each time, at most 30 min, and up to as much again.
    for count, least in ((1, 30), (2, 60), (5, 480), (12, 1800)):
        assert least <= pause_after("a", count).total_seconds() < 2 * least
    assert abs((pause_after("a", 1) - pause_after("b", 1)).total_seconds()) > 1


def test_a_job_in_the_queue_has_no_pods_until_it_is_admitted() -> None:
    of = job()
    held = in_queue(of, [], Admission(False, "InsufficientCPU", "3 workers of cpu=2 do not fit: …"))
    assert not made(held)
    assert condition(held, "Queued")["reason"] == "InsufficientCPU"
    assert condition(held, "Ready")["reason"] == "Queued"
    waiting = after(of, held)
    assert (
        in_queue(waiting, [], Admission(False, "InsufficientCPU", "3 workers of cpu=2 do not fit: …")).status
        == held.status
    )
    begun = in_queue(waiting, [], Admission(True))
    assert len(made(begun)) == 3
    assert "Started" in [event.reason for event in begun.events]


def test_a_preempted_job_saves_first_and_goes_back_to_the_queue() -> None:
    of = under_way()
    pods = group(of, running, running, running)
    first = in_queue(of, pods, Admission(False, preempted_by="TrainingJob team/urgent"))
    assert not first.deletes
    preempted = condition(first, "Preempted")
    assert (preempted["status"], preempted["reason"]) == ("True", "HigherPriority")
    assert "team/urgent" in preempted["message"]
    of = after(of, first)
    assert in_queue(of, [], Admission(False)) == Plan(), "its pods are gone and the queue has not looked yet"
    leaving = in_queue(of, pods, Admission(False, "InsufficientCPU", "no room"))
    assert {item.grace_period_seconds for item in leaving.deletes} == {None}
    waits = in_queue(of, [], Admission(False, "InsufficientCPU", "no room"))
    assert condition(waits, "Preempted")["status"] == "True"
    assert condition(waits, "Ready")["reason"] == "Queued"
    again = in_queue(after(of, waits), group(of, running, running, running, attempt=2), Admission(True))
    assert again.status is not None
    assert "Preempted" not in {item["type"] for item in again.status["conditions"]}
    assert again.status["restarts"] == 0


@pytest.mark.parametrize(
    ("ttl", "later", "deleted"), [(0, 0, True), (60, 49, False), (60, 50, True), (None, 1e6, False)]
)
def test_a_finished_job_is_deleted_when_its_time_is_over(ttl: int | None, later: float, deleted: bool) -> None:
    spec: dict[str, Any] = {} if ttl is None else {"ttlSecondsAfterFinished": ttl}
    of = job(**spec)
    pods = [ended(item, 0, at=10) for item in group(of, running, running, running)]
    of = after(of, planned(of, pods))
    step = planned(of, pods, later=later)
    assert [(item.type, item.key.name, item.uid) for item in step.deletes] == ([(JOB, "digits", "job-uid")] * deleted)
    if ttl and not deleted:
        assert step.requeue_after == timedelta(seconds=60 - 10 - later)
