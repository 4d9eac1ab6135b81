"""What to do for a TrainingJob of topology ParameterServer: every pod, worker or server, is replaced alone.

Workers have nothing in common but the servers, so one that is lost holds nobody up, and an attempt lasts until the job
is suspended or preempted. What a lost pod costs is put on record first (its UID in `status.removing`, and a restart
where it failed by itself), then the pod is deleted, then made anew; writing the same record twice changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controllers.runtime.namespace import STORAGE_SECRET, namespace_objects
from controllers.runtime.objects import POD, SERVICE, Manifest
from controllers.runtime.plan import Apply, Delete, Event, Plan
from controllers.runtime.podstate import Problem, is_finished, is_ready, is_terminating, lacks_secret, name_of
from controllers.runtime.settings import Settings
from controllers.trainingjob import plan as plans
from controllers.trainingjob import servers, status, waiting
from controllers.trainingjob.builders import ZONE
from controllers.trainingjob.failure import Outcome, Verdict, every_worker_succeeded, judge
from controllers.trainingjob.observed import Observed
from controllers.trainingjob.plan import (
    AT_ONCE,
    LONGEST_BACKOFF,
    LOOK_AT_NODES,
    end,
    out_of_restarts,
    removals,
    transitions,
)
from controllers.trainingjob.readiness import STARTING, look_again, problem
from controllers.trainingjob.run import Run, attempt_of
from controllers.trainingjob.waiting import preempted, queued, suspended
from headrace.api.meta import parse_duration
from headrace.api.trainingjob import LastRestart, ServerCounts, TrainingJob, TrainingJobStatus

MAX_REMOVING = 5000


@dataclass(frozen=True, slots=True)
class Served:
    """A run and its servers.

    Attributes:
        run: The run, with its workers.
        servers: The current attempt's pod of each server, None where there is none.
        leftovers: Pods of earlier attempts, workers and servers.
    """

    run: Run
    servers: Sequence[Manifest | None]
    leftovers: Sequence[Manifest]

    @classmethod
    def of(cls, job: TrainingJob, observed: Observed, now: datetime) -> Served:
        """Tell servers from workers."""
        names = [servers.server_name(job.metadata.name, index) for index in range(servers.spec_of(job).servers)]
        workers = {name: pod for name, pod in observed.pods.items() if name not in names}
        run = Run.of(job, dataclasses.replace(observed, pods=workers), now)
        # Pods are placed one by one as long as the job lives: that all were once is nothing to go by.
        run = dataclasses.replace(run, complete=False)
        found = [pod for name in names if (pod := observed.pods.get(name)) is not None]
        current = {name_of(pod): pod for pod in found if attempt_of(pod) == run.pod_attempt}
        old = [pod for pod in found if name_of(pod) not in current]
        return cls(run, [current.get(name) for name in names], [*run.leftovers, *old])

    @property
    def present_servers(self) -> list[Manifest]:
        """The servers' pods that there are."""
        return [pod for pod in self.servers if pod is not None]

    @property
    def present(self) -> list[Manifest]:
        """All pods, workers first."""
        return [*self.run.present, *self.present_servers]

    @property
    def removing(self) -> set[str]:
        """UIDs of pods whose end is on record, as far as the pods are still there."""
        recorded = set((self.run.job.status or TrainingJobStatus()).removing)
        return recorded & {str(pod["metadata"]["uid"]) for pod in self.present}

    def alone(self, pod: Manifest) -> Run:
        """The run as if this pod were all of it, for rules that look at one."""
        return dataclasses.replace(self.run, workers=[pod], leftovers=[], group=None)

    @property
    def everyone(self) -> Run:
        """The run with the servers among its workers, for rules about all pods."""
        return dataclasses.replace(self.run, workers=[*self.run.workers, *self.servers], leftovers=self.leftovers)

    @property
    def as_servers(self) -> Run:
        """The run as if the servers were its workers, for rules of readiness."""
        return dataclasses.replace(self.run, workers=self.servers, leftovers=[], group=None)


def plan(job: TrainingJob, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """What one reconcile does."""
    if job.metadata.deletion_timestamp is not None:
        return Plan()  # The pods go with their owner.
    served = Served.of(job, observed, now)
    run = served.run
    if status.is_finished(job.status or TrainingJobStatus()):
        return after_the_end(served)
    if served.leftovers:
        return clear_away(served)
    # Without the rules for gangs: a worker that finds no node keeps no other from its work.
    held = next(
        (found for rule in (suspended, preempted, queued) if (found := rule(served.everyone)) is not None), None
    )
    if held is not None and every_worker_succeeded(run) is None:
        return waiting.wait(served.everyone, settings, held)
    if (verdict := every_worker_succeeded(run)) is not None:
        return finish(served, settings, verdict)
    ends = ended(served)
    final = next((verdict for _, verdict in ends if verdict.outcome is Outcome.FAILED), None)
    if final is not None:
        return finish(served, settings, final)
    fresh = [(pod, verdict) for pod, verdict in ends if str(pod["metadata"]["uid"]) not in served.removing]
    if fresh:
        own = next((verdict for _, verdict in fresh if verdict.outcome is Outcome.OWN_FAULT), None)
        if own is not None and run.budget_is_used_up:
            return finish(served, settings, out_of_restarts(run, own))
        return record(served, settings, fresh)
    return go_on(served, settings, ends)


def clear_away(served: Served) -> Plan:
    """Delete the pods of ended attempts, and wait until they are gone. Servers save a last time."""
    return Plan(deletes=_removals(served, served.leftovers), requeue_after=LOOK_AT_NODES, labels=_labels(served))


def ended(served: Served) -> list[tuple[Manifest, Verdict]]:
    """Pods that must be replaced, each with what became of it. A worker that succeeded is none of them."""
    found: list[tuple[Manifest, Verdict]] = []
    for pod in served.run.present:
        verdict = judge(served.alone(pod))
        if verdict is not None and verdict.outcome is not Outcome.SUCCEEDED:
            found.append((pod, verdict))
    for pod in served.present_servers:
        verdict = judge(served.alone(pod))
        if verdict is None:
            continue
        if verdict.outcome is Outcome.SUCCEEDED:
            # A server serves until it is removed.
            verdict = Verdict(Outcome.LOST, "ServerEnded", f"pod {pod['metadata']['name']} ended before the workers")
        found.append((pod, verdict._replace(reason=verdict.reason.replace("Worker", "Server"))))
    return found


def record(served: Served, settings: Settings, fresh: Sequence[tuple[Manifest, Verdict]]) -> Plan:
    """Put on record what was lost and what it costs. Deletes nothing, so that the evidence outlives a lost write."""
    run = served.run
    counted = sum(verdict.outcome is Outcome.OWN_FAULT for _, verdict in fresh)
    at = run.now.replace(microsecond=0)
    is_a_rate = bool(parse_duration(run.job.spec.restart_policy.window))
    after = dataclasses.replace(
        run, restarts=run.restarts + counted, recent=[*run.recent, *([at] if counted and is_a_rate else [])]
    )
    limit = run.job.spec.restart_policy.max_restarts
    cost = f"this is restart {after.restarts}, at most {limit} are allowed" if counted else "this counts as no restart"
    message = f"{_said(fresh)}. It is replaced, the others go on; {cost}"
    reason = fresh[0][1].reason
    going = status.going_on(after, settings, Problem(reason, message))
    going |= {
        "lastRestart": LastRestart(attempt=run.attempt, reason=reason, message=_said(fresh)).manifest(),
        "removing": sorted({*served.removing, *(str(pod["metadata"]["uid"]) for pod, _ in fresh)})[:MAX_REMOVING],
    }
    events = [Event("Warning", verdict.reason, verdict.message, "Replace") for _, verdict in fresh[:5]]
    return Plan(status=going | _servers(served), events=events, requeue_after=AT_ONCE, labels=_labels(served))


def go_on(served: Served, settings: Settings, ends: Sequence[tuple[Manifest, Verdict]]) -> Plan:
    """Remove what ended, create what is missing, and say how things are."""
    run = served.run
    job = run.job
    restarts = run.restarts
    zones = any(ZONE in (node["metadata"].get("labels") or {}) for node in run.observed.cluster)
    gone = [pod for pod, _ in ends]
    lost_secret = any(lacks_secret(pod, STORAGE_SECRET) for pod in served.present)
    missing = [index for index, pod in enumerate(run.workers) if pod is None]
    lacking = [index for index, pod in enumerate(served.servers) if pod is None]
    default_storage = job.spec.storage is None or job.spec.storage.secret_ref is None
    applies = [
        *namespace_objects(
            job.metadata.namespace,
            settings,
            account=job.spec.service_account_name is None,
            storage=default_storage and (bool(missing or lacking) or lost_secret),
            lost=lost_secret,
        ),
        Apply(SERVICE, servers.service(job)),
    ]
    pause = remaining_pause(run)
    if pause is None:
        for index in lacking:
            pod = servers.server(job, settings, index, attempt=run.pod_attempt, restarts=restarts, zones=zones)
            applies.append(Apply(POD, pod))
        for index in missing:
            pod = servers.worker(job, settings, index, attempt=run.pod_attempt, restarts=restarts, zones=zones)
            applies.append(Apply(POD, pod))

    trouble = Problem(ends[0][1].reason, f"{_said(ends)}. It is replaced, the others go on") if ends else None
    trouble = trouble or problem(run) or _servers_problem(served)
    new = status.going_on(run, settings, trouble) | _servers(served) | {"removing": sorted(served.removing)}
    again = [wait for wait in (look_again(run), look_again(served.as_servers), pause) if wait is not None]
    again += [LOOK_AT_NODES] if ends else []
    soonest = min(again, default=None)
    # Changes of the servers are news like any other: they are few.
    hold = status.may_wait(run, new) if not served.removing and not _servers_changed(run, new) else None
    deletes = _removals(served, gone)
    if hold is not None:
        return Plan(applies=applies, deletes=deletes, requeue_after=min(hold, soonest or hold))
    return Plan(
        applies=applies,
        deletes=deletes,
        status=new,
        events=list(transitions(run, job.status, new)),
        requeue_after=soonest,
        labels=_labels(served),
    )


def finish(served: Served, settings: Settings, verdict: Verdict) -> Plan:
    """The job is over; what still runs is removed by the next step, when this is on record."""
    plan = end(served.run, settings, verdict)
    running = any(not is_finished(pod) for pod in served.present)
    return dataclasses.replace(
        plan, status=(plan.status or {}) | _servers(served), requeue_after=AT_ONCE if running else None
    )


def after_the_end(served: Served) -> Plan:
    """Pods that ended keep their logs; the servers leave, and so do workers whose job failed."""
    run = served.run
    running = [pod for pod in [*served.present, *served.leftovers] if not is_finished(pod)]
    ttl = waiting.time_to_live(run)
    if ttl is not None and ttl <= timedelta(0):
        return plans.after_the_end(run)  # It removes the job.
    return Plan(
        deletes=removals(run, running),
        status=status.same_for(run.job),
        requeue_after=LOOK_AT_NODES if running else ttl,
    )


def remaining_pause(run: Run) -> timedelta | None:
    """What is left of the pause before a pod is made anew after own failures: none, 2 s, 4 s and so on."""
    if len(run.recent) < 2:
        return None
    left = run.recent[-1] + min(timedelta(seconds=2 ** min(len(run.recent) - 1, 16)), LONGEST_BACKOFF) - run.now
    return left if left > timedelta(0) else None


def _said(ends: Sequence[tuple[Manifest, Verdict]]) -> str:
    more = f" and {len(ends) - 3} more" if len(ends) > 3 else ""
    return "; ".join(verdict.message for _, verdict in ends[:3]) + more


def _servers_problem(served: Served) -> Problem | None:
    """Why the servers do not all serve."""
    found = problem(served.as_servers)
    if found is None:
        return None
    if found.reason == STARTING:
        return Problem(STARTING, "servers are being started")
    return Problem(found.reason.replace("Worker", "Server"), found.message)


def _removals(served: Served, pods: Sequence[Manifest]) -> list[Delete]:
    """Deletions; servers have the time that their pods allow."""
    names = {servers.server_name(served.run.job.metadata.name, index) for index in range(len(served.servers))}
    saving = [pod for pod in pods if name_of(pod) in names]
    return [*removals(served.run, [pod for pod in pods if pod not in saving]), *removals(served.run, saving, None)]


def _labels(served: Served) -> dict[str, str]:
    return {"attempt": str(served.run.attempt)}


def _servers(served: Served) -> dict[str, Any]:
    ready = sum(is_ready(pod) and not is_terminating(pod) for pod in served.present_servers)
    total = len(served.servers)
    return {"servers": ServerCounts(total=total, ready=ready, summary=f"{ready}/{total}").manifest()}


def _servers_changed(run: Run, new: dict[str, Any]) -> bool:
    """A server was there and is not any more, or is again."""
    before = (run.job.status or TrainingJobStatus()).servers
    return before is not None and before.ready == before.total and before.manifest() != new["servers"]
