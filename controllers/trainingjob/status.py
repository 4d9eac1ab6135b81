"""The status of a TrainingJob: figures and conditions from the run as it stands, or from how an attempt ended.

`Ready` is the summary; `Scheduled` and `Running` say how far the current attempt is; `Restarting` holds from the end of
one attempt to the start of the next; `Succeeded` and `Failed` end the job. `Stalled` (kstatus: will not go on by
itself), `Straggler`, `SlowLink` and `ReportMalformed` are there only while they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from controllers.runtime.conditions import Wanted, conditions
from controllers.runtime.plan import Event
from controllers.runtime.podstate import Problem, container_statuses, is_ready, moment, name_of, node_of, phase
from controllers.runtime.settings import Settings
from controllers.trainingjob import observations
from controllers.trainingjob.builders import ZONE, storage_uri
from controllers.trainingjob.failure import Outcome, Verdict
from controllers.trainingjob.names import processes_per_worker, selector
from controllers.trainingjob.readiness import STARTING, kueue_holds_them, problem, worker_is_unschedulable
from controllers.trainingjob.report import MalformedReportError, Report, read
from controllers.trainingjob.run import Run, condition_of, is_true
from headrace.api.meta import parse_duration
from headrace.api.trainingjob import LastRestart, TrainingJob, TrainingJobStatus, WorkerCounts, WorkerPlace

MAX_PLACES = 64
"""Workers listed in placement."""

Status = dict[str, Any]


def going_on(run: Run, settings: Settings, known: Problem | None = None) -> Status:
    """The status while the current attempt goes on; `known` is why it is not well, where the plan knows already."""
    before = run.job.status or TrainingJobStatus()
    between = _between_rounds(run)
    trouble = known or problem(run) or between
    wanted = [
        Wanted("Ready", True, "Running", f"{workers(len(run.workers))} running")
        if trouble is None
        else Wanted("Ready", False, trouble.reason, trouble.message),
        _scheduled(run),
        Wanted("Running", True, "WorkersRunning")
        if trouble is None
        else Wanted("Running", False, trouble.reason, "see condition Ready"),
        Wanted("Restarting", True, between.reason, between.message)
        if between is not None and between.reason != "LinkDead"
        else Wanted("Restarting", False, "NotRestarting"),
        Wanted("Succeeded", False, "InProgress"),
        Wanted("Failed", False, "InProgress"),
    ]
    if condition_of(before, "Suspended") is not None:
        wanted.append(Wanted("Suspended", False, "JobResumed"))  # as a Job has it
    report, malformed = _report(run)
    if malformed is not None:
        wanted.append(Wanted("ReportMalformed", True, "MalformedReport", malformed))
    wanted += _stragglers(run)
    if run.group and run.group.slow_links:
        remedy = "every step waits for it: look at that link, or at what else uses it"
        wanted.append(Wanted("SlowLink", True, "LinkSlow", f"{run.group.slow_links}; {remedy}"))
    ready = sum(is_ready(pod) for pod in run.present)
    figures: dict[str, Any] = {
        "attempt": run.attempt,
        "pod_attempt": run.pod_attempt,
        "restarts": run.restarts,
        "recent_restarts": run.recent,
        "last_restart": _last_restart(run),
        # Once the whole group has nodes, the next one that has not begins to count anew.
        "requeue_state": None if len(_places(run)) == len(run.workers) else before.requeue_state,
        "workers": _counts(run, ready),
        "placement": _placement(run),
        "progress": report.progress() if report else before.progress,
        "metrics": report.metrics if report else before.metrics,
    }
    return _status(run, settings, figures, wanted)


def _between_rounds(run: Run) -> Problem | None:
    """The agents have ended a round and not begun the next."""
    group = run.group
    if group is None or not group.reason or group.state not in ("Stopping", "Gathering", "Probing"):
        return None
    if group.reason == "LinkDead":
        return Problem(group.reason, f"{group.message}; it is tried again till topology.preflight.timeout is over")
    waits = ""
    if group.missing:
        waits = f"; waiting for {', '.join(run.name(index) for index in group.missing[:3])}"
    return Problem(
        group.reason, f"{group.message}; the training processes are being started again in their pods{waits}"
    )


def _stragglers(run: Run) -> list[Wanted]:
    """Who holds the others up, with where it runs."""
    slow = run.group.stragglers if run.group and run.group.state == "Running" else {}
    places = {place.pod: place for place in _places(run)}
    said: list[str] = []
    for index, times in slow.items():
        name = run.name(int(index))
        place = places.get(name)
        where = f"node {place.node}{f' in zone {place.zone}' if place.zone else ''}" if place else "an unknown node"
        rank = f"rank {place.rank}, " if place else ""
        said.append(f"pod {name} ({rank}{where}) takes about {times:g} times as long as the others for its own work")
    if not said:
        return []
    remedy = "all wait for it at every step: look at what else runs on the node, at its clock rate, and at its data"
    return [Wanted("Straggler", True, "WorkerSlow", f"{'; '.join(said)}; {remedy}")]


def _last_restart(run: Run) -> LastRestart | None:
    """The last restart, as the agents tell it or as it was written."""
    before = run.job.status.last_restart if run.job.status else None
    group = run.group
    if group is None or not group.reason or group.state != "Running" or group.round <= run.pod_attempt:
        return before
    seconds = "" if group.recovered is None else f"{group.recovered:g}"
    return LastRestart(attempt=group.round, reason=group.reason, message=group.message, recovery_seconds=seconds)


def restarting(run: Run, settings: Settings, verdict: Verdict, delay: timedelta) -> Status:
    """The status that records the end of an attempt and announces the next."""
    before = run.job.status or TrainingJobStatus()
    counted = verdict.outcome is Outcome.OWN_FAULT
    restarts = run.restarts + counted
    wait = f", not before {delay.total_seconds():g} s have passed" if delay else ""
    limit = run.job.spec.restart_policy.max_restarts
    cost = f"this is restart {restarts} of at most {limit}" if counted else "this counts as no restart"
    message = (
        f"attempt {run.attempt} ended: {verdict.message}. "
        f"Attempt {run.attempt + 1} starts once its pods are gone{wait}; {cost}"
    )
    wanted = [
        Wanted("Ready", False, "Restarting", message),
        Wanted("Scheduled", False, "Restarting", "see condition Ready"),
        Wanted("Running", False, "Restarting", "see condition Ready"),
        Wanted("Restarting", True, verdict.reason, message),
        Wanted("Succeeded", False, "InProgress"),
        Wanted("Failed", False, "InProgress"),
    ]
    report, _ = _report(run)
    progress = report.progress() if report else before.progress
    figures: dict[str, Any] = {
        "attempt": run.attempt + 1,
        "pod_attempt": run.attempt + 1,
        "restarts": restarts,
        "recent_restarts": [*run.recent, _whole_seconds(run.now)] if counted and _is_rate(run) else run.recent,
        "last_restart": LastRestart(attempt=run.attempt + 1, reason=verdict.reason, message=verdict.message),
        "workers": WorkerCounts(total=len(run.workers), summary=f"0/{len(run.workers)}"),
        # The next attempt says itself where it resumes.
        "progress": progress.model_copy(update={"resumed_from_step": None}),
        "metrics": report.metrics if report else before.metrics,
    }
    return _status(run, settings, figures, wanted)


def ended(run: Run, settings: Settings, verdict: Verdict) -> Status:
    """The last status of a job."""
    before = run.job.status or TrainingJobStatus()
    succeeded = verdict.outcome is Outcome.SUCCEEDED
    wanted = [
        Wanted("Ready", succeeded, verdict.reason, verdict.message),
        _scheduled(run),
        Wanted("Running", False, verdict.reason),
        Wanted("Restarting", False, "NotRestarting"),
        Wanted("Succeeded", succeeded, verdict.reason, verdict.message if succeeded else ""),
        Wanted("Failed", not succeeded, verdict.reason, "" if succeeded else verdict.message),
    ]
    if not succeeded:
        wanted.append(Wanted("Stalled", True, verdict.reason, verdict.message))
    report, malformed = _report(run)
    if malformed is not None:
        wanted.append(Wanted("ReportMalformed", True, "MalformedReport", malformed))
    figures: dict[str, Any] = {
        "attempt": run.attempt,
        "pod_attempt": run.pod_attempt,
        "restarts": run.restarts,
        "recent_restarts": run.recent,
        "last_restart": _last_restart(run),
        "workers": _counts(run, 0),
        "placement": _placement(run),
        "progress": report.progress() if report else before.progress,
        "metrics": report.metrics if report else before.metrics,
        "completion_time": _finished(run) or run.now,
    }
    if succeeded and report is not None and report.model_uri:
        figures["model_uri"] = report.model_uri
    return _status(run, settings, figures, wanted)


def _is_rate(run: Run) -> bool:
    return bool(parse_duration(run.job.spec.restart_policy.window))


def same_for(job: TrainingJob) -> Status | None:
    """The status of an ended job for a newer generation of its spec, which changes nothing any more.

    While a release is upgraded, the operator of the release before meets fields in the spec that it does not know and
    says so (InvalidSpec); what the job came to is in its other conditions still.
    """
    status = job.status
    if status is None:
        return None
    generation, conditions = job.metadata.generation, list(status.conditions)
    ready = condition_of(status, "Ready")
    end = next((item for item in conditions if item.type in ("Succeeded", "Failed") and item.status == "True"), None)
    misread = ready is not None and ready.reason == "InvalidSpec" and end is not None
    if status.observed_generation == generation and not misread:
        return None
    if misread and ready is not None and end is not None:
        verdict = "True" if end.type == "Succeeded" else "False"
        said: dict[str, Any] = {"status": verdict, "reason": end.reason, "message": end.message}
        said["last_transition_time"] = end.last_transition_time
        conditions[conditions.index(ready)] = ready.model_copy(update=said)
    seen = [item.model_copy(update={"observed_generation": generation}) for item in conditions]
    return status.model_copy(update={"observed_generation": generation, "conditions": seen}).manifest()


def only_tells_of_the_start(run: Run, status: Status) -> bool:
    """Whether this status says no more than that an attempt is starting, or how far its start is."""
    before = run.job.status or TrainingJobStatus()
    ready = next(item for item in status["conditions"] if item["type"] == "Ready")
    return _unspoken(run, before, status) or (ready["status"] != "True" and not _is_news(before, status))


def may_wait(run: Run, status: Status) -> timedelta | None:
    """How long a write of this status may wait for more to come, or None when it is due.

    A group of N workers comes up in some 2N pod events within moments. Whatever changes a verdict is written at
    once; that an attempt is starting, and counts and places of one that has only just begun, are gathered.
    """
    before = run.job.status or TrainingJobStatus()
    if not _unspoken(run, before, status) and _is_news(before, status):
        return None
    created = [at for pod in run.present if (at := moment(pod["metadata"].get("creationTimestamp"))) is not None]
    if len(run.present) < len(run.workers):
        created.append(run.now)  # made by this reconcile
    age = run.now - max(created, default=run.now)
    # A clock that runs behind the API server's must not hold a write back for long.
    patience = run.observed.patience
    return patience - age if timedelta(0) <= age < patience else None


def _unspoken(run: Run, before: TrainingJobStatus, status: Status) -> bool:
    """Nothing was ever written about the job, and there is nothing to say but that it is starting.

    The first attempt needs no record: its pods carry all that there is to know of it.
    """
    now = next(item for item in status["conditions"] if item["type"] == "Ready")
    was = condition_of(before, "Ready")
    return run.attempt == 1 and (was is None or was.status == "Unknown") and now["reason"] == STARTING


def _is_news(before: TrainingJobStatus, status: Status) -> bool:
    """The status says something else than before of how the job is, not only of how far."""
    if before.attempt != status["attempt"]:
        return True
    for item in status["conditions"]:
        earlier = condition_of(before, item["type"])
        if earlier is None or (item["type"] != "Scheduled" and earlier.status != item["status"]):
            return True
        if item["type"] == "Ready" and earlier.reason != item["reason"]:
            return True
    return False


def _status(run: Run, settings: Settings, figures: Mapping[str, Any], wanted: Sequence[Wanted]) -> Status:
    before = run.job.status or TrainingJobStatus()
    started = [at for pod in run.present if (at := moment(pod["metadata"].get("creationTimestamp"))) is not None]
    generation = run.job.metadata.generation
    report, _ = _report(run)
    status = TrainingJobStatus(
        observed_generation=generation,
        storage_uri=storage_uri(run.job, settings),
        selector=selector(run.job),
        start_time=before.start_time or _whole_seconds(min([*started, run.now])),
        **observations.figures(before, report),
        **figures,
    ).manifest()
    said = [*wanted, *observations.wanted(report)]
    status["conditions"] = conditions(said, before.conditions, generation, run.now)
    return status


def _scheduled(run: Run) -> Wanted:
    if run.complete or all(pod is not None and node_of(pod) for pod in run.workers):
        zones = sorted({place.zone for place in _places(run)} - {""})
        where = f"in zone{'s' if len(zones) > 1 else ''} {', '.join(zones)}" if zones else "on nodes without zones"
        return Wanted("Scheduled", True, "AllScheduled", f"{workers(len(run.workers))} {where}")
    found = worker_is_unschedulable(run) or kueue_holds_them(run)
    if found is not None:
        return Wanted("Scheduled", False, found.reason, found.message)
    return Wanted("Scheduled", False, "Scheduling", "workers are being placed")


def _places(run: Run) -> list[WorkerPlace]:
    places: list[WorkerPlace] = []
    links = {source: (time, rate) for source, _, time, rate in (run.group.links if run.group else ())}
    for index, pod in enumerate(run.workers):
        if pod is None or not node_of(pod):
            continue
        node = run.observed.nodes.get(node_of(pod))
        labels = (node or {}).get("metadata", {}).get("labels") or {}
        places.append(
            WorkerPlace(
                rank=_position(run, index) * processes_per_worker(run.job),
                pod=name_of(pod),
                node=node_of(pod),
                zone=labels.get(ZONE, ""),
                **_link(*links.get(index, (0.0, 0.0))),
            )
        )
    return sorted(places, key=lambda place: place.rank)


def _link(milliseconds: float, bytes_per_second: float) -> dict[str, str]:
    """What was measured to the next rank."""
    if not bytes_per_second:
        return {}
    return {"round_trip": f"{milliseconds:.3g}ms", "bandwidth": f"{bytes_per_second / 1e6:.3g}MB/s"}


def _position(run: Run, index: int) -> int:
    """Place of a worker in the order of ranks: of its number, unless the agents say otherwise."""
    order = run.group.order if run.group else None
    if order is None or len(set(order)) != len(order):
        return index
    return order.index(index) if index in order else len(order) + index


def _placement(run: Run) -> list[WorkerPlace]:
    """Where the workers are. A node that is gone from the caches leaves the zone that was written before."""
    before = {(place.pod, place.node): place for place in (run.job.status or TrainingJobStatus()).placement}
    return [place if place.zone else before.get((place.pod, place.node), place) for place in _places(run)[:MAX_PLACES]]


def _counts(run: Run, ready: int) -> WorkerCounts:
    total = len(run.workers)
    succeeded = sum(phase(pod) == "Succeeded" for pod in run.present)
    return WorkerCounts(total=total, ready=ready, succeeded=succeeded, summary=f"{ready + succeeded}/{total}")


def observed(run: Run, new: Status) -> list[Event]:
    """Events for what the trainer measures of itself and had not said before."""
    return observations.events(run.job.status or TrainingJobStatus(), _report(run)[0], new["conditions"])


def _report(run: Run) -> tuple[Report | None, str | None]:
    try:
        return read(run.workers[0]), None
    except MalformedReportError as error:
        return None, (
            f"the annotation headrace.dev/report of pod {run.name(0)} is no valid report ({error}); progress is not "
            "updated, training is not affected"
        )


def _finished(run: Run) -> datetime | None:
    ends = [
        end
        for pod in run.present
        for status in container_statuses(pod)
        if (end := moment(((status.get("state") or {}).get("terminated") or {}).get("finishedAt"))) is not None
    ]
    return max(ends, default=None)


def _whole_seconds(at: datetime) -> datetime:
    return at.replace(microsecond=0)


def workers(count: int) -> str:
    """So many workers, in words."""
    return "1 worker" if count == 1 else f"{count} workers"


def is_finished(status: TrainingJobStatus) -> bool:
    """The job has ended for good."""
    return is_true(status, "Succeeded") or is_true(status, "Failed")
