"""Why a run may have no workers now, or must let go of those that it has: a chain of small rules.

A run is held while `spec.suspend` says so, while a group that found nodes for a part of its workers only waits to try
again, and while it stands in the queue. A run that has workers then lets go of them in the two steps of every ended
attempt (see `run`): first the next attempt is on record together with the reason, then the pods are deleted. Where
they have something to save (`DRAINED`) they get their own grace period for it, so SIGTERM means: checkpoint and leave.
Letting go is nobody's failure and costs no restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from controllers.runtime.conditions import Wanted, conditions
from controllers.runtime.plan import Event, Plan
from controllers.runtime.podstate import Problem, node_of
from controllers.runtime.settings import Settings
from controllers.trainingjob.builders import storage_uri
from controllers.trainingjob.names import selector
from controllers.trainingjob.readiness import time_for_the_rest, worker_is_unschedulable
from controllers.trainingjob.run import Run, condition_of, is_true, names
from headrace.api.trainingjob import RequeueState, TrainingJobStatus, WorkerCounts

SUSPENDED = "Suspended"
QUEUED = "Queued"
PREEMPTED = "Preempted"
"""Condition types; each is there while it holds, Suspended also afterwards (False), as a Job has it."""
GANG_TIMEOUT = "GangTimeout"
DRAINED = (SUSPENDED, PREEMPTED)
"""Conditions under which the pods that are deleted have something to save."""
FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=30)
AT_ONCE = timedelta(milliseconds=10)
"""The next step of two that must not be one; own writes wake nobody."""


@dataclass(frozen=True, slots=True)
class Hold:
    """No workers now.

    Attributes:
        reason: CamelCase reason of Ready.
        message: What it waits for, and what would change that.
        wanted: The conditions that say so.
        after: When that ends by itself; None: something else wakes the job.
        requeue: What is to be remembered of groups that let go.
        warning: The Event that tells of it is a warning.
    """

    reason: str
    message: str
    wanted: tuple[Wanted, ...]
    after: timedelta | None = None
    requeue: RequeueState | None = None
    warning: bool = True


def hold(run: Run) -> Hold | None:
    """Why the run may have no workers now, or None."""
    for rule in RULES:
        found = rule(run)
        if found is not None:
            return found
    return None


def suspended(run: Run) -> Hold | None:
    if not run.job.spec.suspend:
        return None
    message = (
        "spec.suspend is true: the workers save a checkpoint and leave, and nothing is held; set it to false and the "
        "run goes on from the last checkpoint"
    )
    return Hold(SUSPENDED, message, (Wanted(SUSPENDED, True, "JobSuspended", message),), warning=False)


def preempted(run: Run) -> Hold | None:
    """A job of higher priority needs the room, by the queue's decision."""
    admission = run.observed.admission
    if admission is None or not admission.preempted_by or not run.present:
        return None
    message = (
        f"{admission.preempted_by} has a higher priority and needs the room: the workers save a checkpoint and leave, "
        "and the run goes on from it once there is room again"
    )
    return Hold(
        PREEMPTED,
        message,
        (Wanted(PREEMPTED, True, "HigherPriority", message), Wanted(QUEUED, True, PREEMPTED, message)),
    )


def group_is_late(run: Run) -> Hold | None:
    """A part of the group holds nodes, or the room in a quota, and the rest did not come within the timeout."""
    left = time_for_the_rest(run)
    if left is None or left > timedelta(0):
        return None
    before = (run.job.status or TrainingJobStatus()).requeue_state or RequeueState()
    count = before.count + 1
    pause = pause_after(run.job.metadata.uid, count)
    held = [pod for pod in run.present if node_of(pod)]
    waiting = [run.name(index) for index, pod in enumerate(run.workers) if pod is None or not node_of(pod)]
    why = worker_is_unschedulable(run)
    said = condition_of(run.job.status or TrainingJobStatus(), "Ready")
    if said is not None and said.reason.startswith("Quota"):
        why = Problem(said.reason, said.message)  # as the API server refused the pods that are not there
    shown = ", ".join(waiting[:3]) + (f" and {len(waiting) - 3} more" if len(waiting) > 3 else "")
    missing = why.message if why is not None else f"{shown} could not be created or placed"
    places = f" ({names(held)})" if held else ""
    message = (
        f"{len(held)} of {len(run.workers)} workers held nodes{places} for scheduling.timeout="
        f"{run.job.spec.scheduling.timeout} while {len(waiting)} found none, so all let go. {missing}. The group tries "
        f"again after {pause.total_seconds():.0f} s (time {count} in a row)"
    )
    return Hold(
        GANG_TIMEOUT,
        message,
        (Wanted(QUEUED, True, GANG_TIMEOUT, message),),
        after=pause,
        requeue=RequeueState(count=count, requeue_at=(run.now + pause).replace(microsecond=0)),
    )


def pauses(run: Run) -> Hold | None:
    """The pause of a group that let go is not over; what it said then still holds."""
    before = run.job.status or TrainingJobStatus()
    state, said = before.requeue_state, condition_of(before, QUEUED)
    if run.present or state is None or state.requeue_at is None or state.requeue_at <= run.now:
        return None
    message = said.message if said is not None else f"the group tries again at {state.requeue_at:%H:%M:%S} UTC"
    return Hold(
        GANG_TIMEOUT, message, (Wanted(QUEUED, True, GANG_TIMEOUT, message),), state.requeue_at - run.now, state
    )


def queued(run: Run) -> Hold | None:
    """Another's turn comes first, or there is no room for the whole group."""
    admission = run.observed.admission
    if admission is None or admission.admitted or run.present:
        return None
    if not admission.reason:
        return Hold("", "", ())
    before = run.job.status or TrainingJobStatus()
    wanted = [Wanted(QUEUED, True, admission.reason, admission.message)]
    if (was := condition_of(before, PREEMPTED)) is not None:
        wanted.append(Wanted(PREEMPTED, True, was.reason, was.message))
    return Hold(QUEUED, admission.message, tuple(wanted), requeue=before.requeue_state, warning=False)


RULES: tuple[Callable[[Run], Hold | None], ...] = (suspended, preempted, group_is_late, pauses, queued)


def pause_after(uid: str, count: int) -> timedelta:
    """Pause before a group that let go tries again: 30 s, doubled each time up to 30 min, and up to once more of that.

    What is added differs from job to job, so that two that are in each other's way do not come back together.
    """
    pause = min(FIRST_PAUSE * 2.0 ** min(count - 1, 16), LONGEST_PAUSE)
    digest = hashlib.blake2b(f"{uid}/{count}".encode(), digest_size=4).digest()
    return pause * (1 + int.from_bytes(digest) / 2**32)


def wait(run: Run, settings: Settings, held: Hold) -> Plan:
    """Have no workers. Those that there are leave in the next step, when this is on record."""
    if not held.reason:
        return Plan()  # The queue has not looked yet, and wakes the job when it has.
    before = run.job.status or TrainingJobStatus()
    generation = run.job.metadata.generation
    figures: dict[str, Any] = {
        "observed_generation": generation,
        "restarts": run.restarts,
        "recent_restarts": list(run.recent),
        "workers": WorkerCounts(total=len(run.workers), summary=f"0/{len(run.workers)}"),
        "placement": [],
        "storage_uri": storage_uri(run.job, settings),
        "selector": selector(run.job),
        "requeue_state": held.requeue,
    }
    if run.present:
        figures |= {"attempt": run.attempt + 1, "pod_attempt": run.attempt + 1}
    if held.reason == SUSPENDED:
        figures["start_time"] = None  # As a Job has it: time spent suspended is not time spent running.
    new = before.model_copy(update=figures).manifest()
    wanted = [
        Wanted("Ready", False, held.reason, held.message),
        Wanted(
            "Scheduled", False, held.wanted[0].reason if held.reason == QUEUED else held.reason, "see condition Ready"
        ),
        Wanted("Running", False, held.reason, "see condition Ready"),
        Wanted("Restarting", False, "NotRestarting"),
        Wanted("Succeeded", False, "InProgress"),
        Wanted("Failed", False, "InProgress"),
        *held.wanted,
    ]
    if held.reason != SUSPENDED:
        wanted += resumed_condition(before)
    new["conditions"] = conditions(wanted, before.conditions, generation, run.now)
    return Plan(
        status=new,
        events=[*_events(before, held)],
        requeue_after=AT_ONCE if run.present else held.after,
        labels={"attempt": str(run.attempt)},
    )


def resumed_condition(before: TrainingJobStatus) -> list[Wanted]:
    """Suspended=False once it was True, as a Job has it."""
    return [Wanted(SUSPENDED, False, "JobResumed")] if condition_of(before, SUSPENDED) is not None else []


def was_held(before: TrainingJobStatus) -> bool:
    """The run had no workers because of one of these rules."""
    return any(is_true(before, type_) for type_ in (SUSPENDED, QUEUED, PREEMPTED))


def is_drained(before: TrainingJobStatus) -> bool:
    """Pods that are deleted now have something to save first."""
    return any(is_true(before, type_) for type_ in DRAINED)


def _events(before: TrainingJobStatus, held: Hold) -> list[Event]:
    was = condition_of(before, "Ready")
    if was is not None and was.status == "False" and was.reason == held.reason:
        return []
    return [Event("Warning" if held.warning else "Normal", held.reason, held.message, "Wait")]


def time_to_live(run: Run) -> timedelta | None:
    """What is left of ttlSecondsAfterFinished; None where the job stays."""
    ttl = run.job.spec.ttl_seconds_after_finished
    done = run.job.status.completion_time if run.job.status else None
    return None if ttl is None or done is None else done + timedelta(seconds=ttl) - run.now
