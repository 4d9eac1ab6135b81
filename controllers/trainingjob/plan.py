"""What to do for a TrainingJob: a pure function of the resource, its pods and nodes, and the time.

One attempt is one start of all workers, since collectives cannot go on without one rank. Where workers run agents, the
agents restart them in their pods and only a lost pod is replaced; otherwise an attempt is one set of pods, created
together and replaced together. See `run` for how attempts are counted, `failure` for how one ends, `readiness` for
whether it is well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from controllers.runtime.apply import RESTORE_AFTER
from controllers.runtime.namespace import STORAGE_SECRET, namespace_objects
from controllers.runtime.objects import POD, SERVICE, Key, Manifest, key_of
from controllers.runtime.plan import Apply, Delete, Event, Plan
from controllers.runtime.podstate import Problem, is_finished, is_terminating, lacks_secret
from controllers.runtime.settings import Settings
from controllers.trainingjob import builders, gang, status, waiting
from controllers.trainingjob.failure import COUNTED, Outcome, Verdict, judge, lost_workers
from controllers.trainingjob.names import JOB
from controllers.trainingjob.observed import Observed
from controllers.trainingjob.readiness import STARTING, UNDECIDED, look_again
from controllers.trainingjob.run import Run, condition_of, is_true
from headrace.api.trainingjob import LastRestart, TrainingJob, TrainingJobStatus

GRACE_PERIOD = 5
"""Seconds for the workers of an ended attempt to leave; they have nothing left to save."""
LONGEST_BACKOFF = timedelta(seconds=60)
FREE_LOSSES = 3
"""Uncounted restarts without a pause; after that something removes the workers again and again."""
PAUSE_BETWEEN_LOSSES = timedelta(seconds=10)
AT_ONCE = timedelta(milliseconds=10)
"""The next step of two that must not be one; own writes wake nobody."""
LOOK_AT_NODES = timedelta(seconds=5)


def plan(job: TrainingJob, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """What one reconcile does."""
    if job.metadata.deletion_timestamp is not None:
        return Plan()  # The pods go with their owner.
    run = Run.of(job, observed, now)
    before = job.status or TrainingJobStatus()
    if status.is_finished(before):
        return after_the_end(run)
    if run.leftovers:
        return clear_away(run)
    held = waiting.hold(run)
    if held is not None:
        return hold(run, settings, held)
    pause = remaining_pause(run)
    if pause:
        return Plan(requeue_after=pause)
    if lost := lost_workers(run):
        return replace(run, settings, lost)
    verdict = judge(run)
    if verdict is None:
        return go_on(run, settings)
    if verdict.outcome in (Outcome.SUCCEEDED, Outcome.FAILED):
        return end(run, settings, verdict)
    if verdict.outcome is Outcome.OWN_FAULT and run.budget_is_used_up:
        return end(run, settings, out_of_restarts(run, verdict))
    return restart(run, settings, verdict)


def hold(run: Run, settings: Settings, held: waiting.Hold) -> Plan:
    """Have no workers now, unless the run has just ended."""
    verdict = judge(run) if run.present else None
    if verdict is not None and verdict.outcome in (Outcome.SUCCEEDED, Outcome.FAILED):
        return end(run, settings, verdict)
    return waiting.wait(run, settings, held)


def replace(run: Run, settings: Settings, lost: Sequence[tuple[Manifest, Verdict]]) -> Plan:
    """Remove lost pods, so that they are made anew while the agents of the others wait for them."""
    gone = removals(run, [pod for pod, _ in lost])
    said = "; ".join(verdict.message for _, verdict in lost[:3])
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    stay = "" if len(lost) == len(run.present) else ", the other pods stay"
    message = f"{said}{more}. It is replaced{stay}, and training goes on from the last checkpoint"
    going = go_on(run, settings, Problem(lost[0][1].reason, message))
    return dataclasses.replace(going, deletes=[*gone, *going.deletes], requeue_after=LOOK_AT_NODES)


def go_on(run: Run, settings: Settings, trouble: Problem | None = None) -> Plan:
    """Create what is missing and say how things are.

    Args:
        run: The run.
        settings: Images and defaults.
        trouble: Why it is not well, where that is known already.
    """
    job, before = run.job, run.job.status
    pause = pause_before_replacing(run)
    missing = [index for index, pod in enumerate(run.workers) if pod is None and not pause]
    lost = any(lacks_secret(pod, STORAGE_SECRET) for pod in run.present)
    default_storage = job.spec.storage is None or job.spec.storage.secret_ref is None
    # Workers that run report with the account's rights, so it is looked at always. The Secret cannot be watched.
    applies = [
        *namespace_objects(
            job.metadata.namespace,
            settings,
            account=job.spec.service_account_name is None,
            storage=default_storage and (bool(missing) or lost),
            lost=lost,
        )
    ]
    if job.spec.most_workers > 1:
        applies.append(Apply(SERVICE, builders.service(job)))
    native = run.observed.gang_api
    if native is not None and gang.is_group(job):
        applies.append(Apply(native.type, native.manifest(job)))
    zones = any(builders.ZONE in (node["metadata"].get("labels") or {}) for node in run.observed.cluster)
    for index in missing:
        pod = builders.worker(
            job,
            settings,
            index,
            attempt=run.pod_attempt,
            restarts=run.restarts,
            zones=zones,
            first_round=run.next_round,
            recent=run.recent,
        )
        applies.append(Apply(POD, gang.member(job, pod, native, run.pod_attempt)))

    new = status.going_on(run, settings, trouble)
    # An Apply of what is lost does nothing while the one before it is young.
    restore = timedelta(seconds=RESTORE_AFTER) if lost else None
    again = min((after for after in (look_again(run), pause, restore) if after), default=None)
    hold = status.may_wait(run, new)
    if hold is not None:
        return Plan(applies=applies, requeue_after=min(hold, again or hold))
    return Plan(
        applies=applies,
        status=new,
        events=list(transitions(run, before, new)),
        status_can_wait=run.observed.patience if status.only_tells_of_the_start(run, new) else None,
        requeue_after=again,
        labels={"attempt": str(run.attempt)},
    )


def restart(run: Run, settings: Settings, verdict: Verdict) -> Plan:
    """First step of a restart: put it on record. Deletes nothing, so that the evidence outlives a lost write."""
    delay = backoff(verdict.reason, run.attempt + 1, run.restarts + (verdict.outcome is Outcome.OWN_FAULT))
    new = status.restarting(run, settings, verdict, delay)
    message = next(item["message"] for item in new["conditions"] if item["type"] == "Restarting")
    events = [
        _event("Warning", verdict.reason, verdict.message, "Restart"),
        _event("Normal", "Restarting", message, "Restart"),
    ]
    return Plan(status=new, events=events, requeue_after=AT_ONCE, labels={"attempt": str(run.attempt)})


def clear_away(run: Run) -> Plan:
    """Second step of a restart: delete the pods of ended attempts, and wait until they are gone."""
    drained = waiting.is_drained(run.job.status or TrainingJobStatus()) or run.has_surplus
    deletes = removals(run, run.leftovers, None if drained else GRACE_PERIOD)
    return Plan(deletes=deletes, requeue_after=LOOK_AT_NODES, labels={"attempt": str(run.attempt)})


def end(run: Run, settings: Settings, verdict: Verdict) -> Plan:
    """The job is over. Workers that still run are removed by the next step, when this is on record."""
    kind = "Normal" if verdict.outcome is Outcome.SUCCEEDED else "Warning"
    new = status.ended(run, settings, verdict)
    return Plan(
        status=new,
        events=[*resumed(run, new), _event(kind, verdict.reason, verdict.message, "Finish")],
        requeue_after=AT_ONCE if any(not is_finished(pod) for pod in run.present) else None,
        labels={"attempt": str(run.attempt)},
    )


def after_the_end(run: Run) -> Plan:
    """Pods that ended keep their logs; those that still run would wait for their peers for ever."""
    running = [pod for pod in [*run.present, *run.leftovers] if not is_finished(pod)]
    ttl = waiting.time_to_live(run)
    if ttl is not None and ttl <= timedelta(0):
        return Plan(deletes=[Delete(JOB, Key(run.job.metadata.namespace, run.job.metadata.name), run.job.metadata.uid)])
    return Plan(
        deletes=removals(run, running),
        status=status.same_for(run.job),
        requeue_after=LOOK_AT_NODES if running else ttl,
    )


def out_of_restarts(run: Run, verdict: Verdict) -> Verdict:
    """The last failure, as the end of the job."""
    policy = run.job.spec.restart_policy
    within = f" within {policy.window}" if run.recent else ""
    return Verdict(
        Outcome.FAILED,
        "RestartLimitReached",
        f"{verdict.message}; restartPolicy.maxRestarts={policy.max_restarts} allows no further restart{within}; "
        "correct the cause (kubectl logs shows the pod's last words) and create the job again",
    )


def remaining_pause(run: Run) -> timedelta | None:
    """What is left of the pause before the next attempt's pods are made."""
    restarting = condition_of(run.job.status or TrainingJobStatus(), "Restarting")
    if run.present or restarting is None or restarting.status != "True":
        return None
    left = restarting.last_transition_time + backoff(restarting.reason, run.attempt, run.restarts) - run.now
    return left if left > timedelta(0) else None


def pause_before_replacing(run: Run) -> timedelta | None:
    """What is left of the pause before a lost pod is made anew, where something removes pods again and again."""
    if run.next_round == run.attempt or run.attempt - 1 - run.restarts <= FREE_LOSSES:
        return None
    running = condition_of(run.job.status or TrainingJobStatus(), "Running")
    since = running.last_transition_time if running is not None and running.status == "False" else run.now
    left = since + PAUSE_BETWEEN_LOSSES - run.now
    return left if left > timedelta(0) else None


def backoff(reason: str, attempt: int, restarts: int) -> timedelta:
    """Pause before an attempt: none, 2 s, 4 s and so on for own failures; losses are free until they look endless.

    Args:
        reason: Why the one before ended.
        attempt: Number of the attempt to come.
        restarts: Counted restarts up to it.
    """
    if reason in COUNTED:
        return min(timedelta(seconds=2 ** min(restarts - 1, 16)), LONGEST_BACKOFF) if restarts > 1 else timedelta(0)
    losses = attempt - 1 - restarts
    return PAUSE_BETWEEN_LOSSES if losses > FREE_LOSSES else timedelta(0)


def removals(run: Run, pods: Iterable[Manifest], grace: int | None = GRACE_PERIOD) -> list[Delete]:
    """Deletions of pods; at once where the node is lost, since nobody is there to confirm.

    Args:
        run: The run.
        pods: Which.
        grace: Seconds that they have to leave; None: what the pod itself allows, for it has something to save.
    """
    found: list[Delete] = []
    for pod in pods:
        lost = run.node_trouble(pod) is not None
        if is_terminating(pod) and not (lost and pod["metadata"].get("deletionGracePeriodSeconds") != 0):
            continue
        found.append(Delete(POD, key_of(pod), pod["metadata"]["uid"], 0 if lost else grace))
    return found


def transitions(run: Run, before: TrainingJobStatus | None, new: status.Status) -> Iterable[Event]:
    """Events for what the new status says and the one before did not."""
    earlier = before or TrainingJobStatus()
    now = {item["type"]: item for item in new["conditions"]}
    was = condition_of(earlier, "Ready")
    ready = now["Ready"]
    begins = earlier.attempt < run.attempt or is_true(earlier, "Restarting") or waiting.was_held(earlier)
    if begins and ready["status"] != "True":  # "Running" says it too
        yield _event(
            "Normal", "Started", f"attempt {run.attempt} starts with {status.workers(len(run.workers))}", "Start"
        )
    if was is None or (was.status, was.reason) != (ready["status"], ready["reason"]):
        if ready["status"] == "True":
            yield _event("Normal", "Running", ready["message"])
        elif ready["reason"] not in (STARTING, UNDECIDED):
            yield _event("Warning", ready["reason"], ready["message"])
    yield from restarted_in_place(earlier, new)
    yield from resumed(run, new)
    for kind in ("Straggler", "SlowLink"):
        slow = now.get(kind)
        if slow is not None and condition_of(earlier, kind) is None:
            yield _event("Warning", slow["reason"], slow["message"])
    malformed = now.get("ReportMalformed")
    if malformed is not None and condition_of(earlier, "ReportMalformed") is None:
        yield _event("Warning", "MalformedReport", malformed["message"])


def restarted_in_place(earlier: TrainingJobStatus, new: status.Status) -> Iterable[Event]:
    """Events for what the agents did among themselves."""
    last = new.get("lastRestart")
    before = earlier.last_restart or LastRestart()
    if last is None or last == before.manifest():
        return
    attempt = last["attempt"]
    ready = condition_of(earlier, "Ready")
    said = ready is not None and ready.reason == last["reason"]
    if not said and (attempt != before.attempt or last["reason"] != before.reason):
        note = f"{last['message']}. Attempt {attempt} starts all training processes again; running pods stay"
        yield _event("Warning", last["reason"], note, "Restart")
    if seconds := last.get("recoverySeconds"):
        yield _event("Normal", "Recovered", f"attempt {attempt}: the next step came {seconds} s after the failure")


def resumed(run: Run, new: status.Status) -> Iterable[Event]:
    """An Event when this attempt says for the first time where it goes on."""
    earlier = run.job.status or TrainingJobStatus()
    step = new["progress"].get("resumedFromStep")
    if step is not None and step != earlier.progress.resumed_from_step:
        yield _event("Normal", "Resumed", f"attempt {run.attempt} resumed from the checkpoint of step {step}")
    yield from status.observed(run, new)


def _event(type_: str, reason: str, note: str, action: str = "Reconcile") -> Event:
    return Event("Normal" if type_ == "Normal" else "Warning", reason, note, action)
