"""Which refresh is under way, and whether the next is to begin: pure rules.

A refresh has a number; its Job is named after it. The status says which is the last, so a reconcile that is repeated
asks for the same Job, and a Job that somebody deletes while it runs is made again and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from controllers.featureset.builders import TRIGGER, job_name
from controllers.featureset.observed import Observed, refresh_report
from controllers.featureset.schedule import next_time
from controllers.runtime.objects import Manifest
from controllers.runtime.podstate import (
    Problem,
    condition,
    container_statuses,
    last_line,
    name_of,
    restart_problem,
    unschedulable,
    waiting_problem,
)
from headrace.api import FeatureSet
from headrace.api.featureset import Online, RefreshReport, RefreshStatus, ServerReport
from headrace.api.featureset.status import Trigger

REQUEST = "headrace.dev/refresh"
"""Annotation of a FeatureSet: a new value asks for a refresh. The hook of whatever writes the table."""
FIRST_RETRY, LAST_RETRY = timedelta(seconds=30), timedelta(minutes=30)
"""Pauses after a refresh that failed."""
LOST_AFTER = timedelta(seconds=10)
"""Time after a refresh in which servers may not have seen yet what it loaded."""
ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Refreshing:
    """What is known of the last refresh.

    Attributes:
        status: To be shown.
        online: What the online store holds.
        begin: A Job for it is to be made.
        problem: Why it does not go on.
        next: When the schedule is due.
        wait: When to look again; None waits for news.
    """

    status: RefreshStatus
    online: Online
    begin: bool = False
    problem: Problem | None = None
    next: datetime | None = None
    wait: timedelta | None = None


def refreshing(
    feature_set: FeatureSet, hash_: str, observed: Observed, servers: Sequence[ServerReport], now: datetime
) -> Refreshing:
    """The state of refreshes.

    Args:
        feature_set: The resource.
        hash_: Of its transform now.
        observed: Jobs and pods.
        servers: What servers of this transform report.
        now: The time.

    Raises:
        ValueError: The schedule is none.
    """
    before = feature_set.status.refresh if feature_set.status else RefreshStatus()
    online = feature_set.status.online if feature_set.status else Online()
    latest = max(observed.jobs, default=0)
    if latest > before.number:
        # The Job was made and the status that says so was not written.
        before = _begun(feature_set, before, latest, _trigger_of(observed.jobs[latest]), now, "")
    next_ = next_time(feature_set.spec.refresh, before.started_at or now)
    if before.number and before.phase not in ENDED:
        found = _progress(feature_set, before, online, observed, now)
        if found.status.phase not in ENDED:
            return found
        before, online = found.status, found.online
    trigger, wait = _trigger(feature_set, hash_, before, online, servers, next_, now)
    if trigger is None:
        waits = [item for item in (wait, next_ - now if next_ else None) if item is not None]
        return Refreshing(before, online, next=next_, wait=min(waits, default=None), problem=_failed(before))
    source = next((item.source_version for item in servers if item.source_version), "")
    started = _begun(feature_set, before, before.number + 1, trigger, now, source)
    return Refreshing(started, online, begin=True, next=next_time(feature_set.spec.refresh, now))


def _trigger(
    feature_set: FeatureSet,
    hash_: str,
    before: RefreshStatus,
    online: Online,
    servers: Sequence[ServerReport],
    next_: datetime | None,
    now: datetime,
) -> tuple[Trigger | None, timedelta | None]:
    """Why a refresh is to begin now; else when to look again."""
    if before.number == 0:
        return "Created", None
    asked = feature_set.metadata.annotations.get(REQUEST, "")
    if asked and asked != before.requested:
        return "Requested", None
    changed = (
        feature_set.status is not None and feature_set.status.observed_generation != feature_set.metadata.generation
    )
    source = next((item.source_version for item in servers if item.source_version), "")
    if feature_set.spec.refresh.on_update and source and source not in (online.source_version, before.source_version):
        return ("SourceChanged" if online.hash == hash_ else "TransformChanged"), None
    if before.phase == "Failed" and not changed:
        pause = min(LAST_RETRY, FIRST_RETRY * 2 ** min(10, max(0, before.failures - 1)))
        left = (before.finished_at or now) + pause - now
        return ("Retry", None) if left <= timedelta() else (None, left)
    if online.hash != hash_:
        return "TransformChanged", None
    if before.phase == "Failed":
        return "Retry", None
    if next_ is not None and next_ <= now:
        return "Schedule", None
    settled = (before.finished_at or now) + LOST_AFTER - now
    if servers and online.version and all(not item.version for item in servers) and any(item.empty for item in servers):
        return ("StoreLost", None) if settled <= timedelta() else (None, settled)
    return None, None


def _progress(
    feature_set: FeatureSet, before: RefreshStatus, online: Online, observed: Observed, now: datetime
) -> Refreshing:
    """How far the refresh is whose Job was asked for."""
    job = observed.jobs.get(before.number)
    if job is None:
        return Refreshing(before, online, begin=True)
    pods = observed.refreshers.get(job_name(feature_set, before.number), ())
    reports = [report for pod in pods if (report := refresh_report(pod)) is not None]
    done = next((report for report in reports if report.phase == "Succeeded"), None)
    if _has(job, "Complete") or (done is not None and _has(job, "SuccessCriteriaMet")):
        return Refreshing(
            before.model_copy(
                update={
                    "phase": "Succeeded",
                    "mode": done.mode if done else before.mode,
                    "done": done.done if done else before.done,
                    "total": done.total if done else before.total,
                    "message": "",
                    "finished_at": now,
                    "failures": 0,
                }
            ),
            done.online if done is not None and done.online is not None else online,
        )
    if _has(job, "Failed"):
        message = _why(job, pods)
        update = {"phase": "Failed", "message": message, "finished_at": now, "failures": before.failures + 1}
        return Refreshing(before.model_copy(update=update), online)
    return Refreshing(_advanced(before, reports), online, problem=_stuck(pods))


def _advanced(before: RefreshStatus, reports: Sequence[RefreshReport]) -> RefreshStatus:
    told = max(reports, key=lambda report: report.done, default=None)
    if told is None:
        return before
    phase = "Writing" if told.phase == "Succeeded" else told.phase
    return before.model_copy(update={"phase": phase, "mode": told.mode, "done": told.done, "total": told.total})


def _stuck(pods: Sequence[Manifest]) -> Problem | None:
    """Why its pod does not run."""
    for pod in pods:
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        if (problem := waiting_problem(pod) or restart_problem(pod)) is not None:
            return problem
        if (message := unschedulable(pod)) is not None:
            return Problem(
                "Unschedulable",
                f"pod {name_of(pod)} finds no node: {last_line(message)}; add nodes, or loosen spec.refresh.pod",
            )
    return None


def _why(job: Manifest, pods: Sequence[Manifest]) -> str:
    """The last words of its pods, else the Job's own."""
    for pod in sorted(pods, key=lambda item: str(item["metadata"].get("creationTimestamp")), reverse=True):
        for status in container_statuses(pod):
            ended = (status.get("state") or {}).get("terminated") or {}
            if ended.get("reason") == "OOMKilled":
                return "it was killed for exceeding its memory limit; raise spec.refresh.pod.resources.limits.memory"
            if said := last_line(ended.get("message") or ""):
                return said
    found = condition(job, "Failed") or {}
    return f"{found.get('reason', '')}: {found.get('message', '')}; see kubectl logs job/{name_of(job)}"


def _failed(status: RefreshStatus) -> Problem | None:
    return Problem("RefreshFailed", status.message) if status.phase == "Failed" else None


def _begun(
    feature_set: FeatureSet, before: RefreshStatus, number: int, trigger: Trigger, now: datetime, source: str
) -> RefreshStatus:
    return RefreshStatus(
        number=number,
        trigger=trigger,
        started_at=now,
        failures=before.failures,
        source_version=source,
        requested=feature_set.metadata.annotations.get(REQUEST, ""),
    )


def _trigger_of(job: Manifest) -> Trigger:
    return cast(Trigger, (job["metadata"].get("annotations") or {}).get(TRIGGER, "Created"))


def _has(job: Manifest, type_: str) -> bool:
    found = condition(job, type_)
    return found is not None and found["status"] == "True"
