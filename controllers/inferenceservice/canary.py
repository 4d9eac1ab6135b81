"""A canary's way: starting, step by step, and then promoted or rolled back. Pure: the next state from the last one.

The state is the status (`CanaryStatus`) and nothing else. What a canary is, is known by two hashes: `revision`, of the
fields of the predictor that it changes, both as they are and as they are to be; and `spec_hash`, of all that
spec.canary says. A canary of another revision begins anew. One that was rolled back also begins anew when anything
about it is changed, since a step or a threshold may have been what was wrong.

*Promotion.* When all steps have passed, the predictor is planned as if spec.predictor said what spec.canary says.
That is an ordinary rolling update, during which the canary goes on with its last percent; then its pods go. It stays so
while spec.canary stands. When the change is moved into spec.predictor in git and spec.canary is removed,
what is planned is the same as before, so nothing restarts.

*Rollback.* The routers are told to send nothing and the pods are deleted. They go on answering for some seconds, and
what they do not answer the stable model does, so neither loses a request.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controllers.inferenceservice.analysis import Arm, Verdict, judge, total
from controllers.inferenceservice.rules import ROLLOUT_STALLED
from controllers.runtime.plan import Event
from controllers.runtime.podstate import Problem
from controllers.runtime.workload import content_hash
from headrace.api import InferenceService
from headrace.api.counts import TrafficReport
from headrace.api.inferenceservice import Predictor
from headrace.api.inferenceservice.traffic import ArmStatus, Canary, CanaryStatus
from headrace.api.meta import parse_duration

OVERRIDES = ("model", "image", "resources", "env")
"""Fields of the predictor that a canary may change."""
HOPELESS = frozenset({"ModelLoadFailed", "ConfigurationFailed", ROLLOUT_STALLED})
"""Problems of its pods that will not pass by themselves."""


@dataclass(frozen=True, slots=True)
class Given:
    """What decides about a canary beside its spec and its last state.

    Attributes:
        ready: Ready pods of the canary.
        problem: Why its pods are not ready, or None.
        stable_replicas: Pods of the stable predictor asked for.
        stable: Why the stable predictor is not as the spec wants it, or None.
        updated: The predictor runs what it is to run once the canary is promoted.
        reports: What the ready routers counted since they took the present traffic.
        routers: Ready routers.
        now: The time.
    """

    ready: int
    problem: Problem | None
    stable_replicas: int
    stable: Problem | None
    updated: bool
    reports: tuple[TrafficReport, ...]
    routers: int
    now: datetime


def merged(predictor: Predictor, canary: Canary) -> Predictor:
    """The predictor with what the canary changes."""
    changes = {name: value for name in OVERRIDES if (value := getattr(canary, name)) is not None}
    return predictor.model_copy(update=changes)


def revision(service: InferenceService, canary: Canary) -> str:
    """Hash of what the canary changes."""
    after = merged(service.spec.predictor, canary)
    changed = [name for name in OVERRIDES if getattr(canary, name) is not None]
    return content_hash([[name, _plain(service.spec.predictor, name), _plain(after, name)] for name in changed])


def _plain(predictor: Predictor, name: str) -> Any:
    # Without defaults, so that a field that a later release adds makes nothing begin anew.
    return predictor.model_dump(mode="json", by_alias=True, exclude_defaults=True, include={name})


def begin(service: InferenceService, canary: Canary, now: datetime) -> CanaryStatus:
    """The state of a canary that nothing is known of: what the status says if that is about this one."""
    hashes = {
        "revision": revision(service, canary),
        "spec_hash": content_hash(canary.model_dump(mode="json", by_alias=True, exclude_defaults=True)),
    }
    last = service.status.canary if service.status else None
    if last is None or last.revision != hashes["revision"]:
        return CanaryStatus(phase="Starting", phase_since=now, **hashes)
    if last.phase == "RolledBack" and last.spec_hash != hashes["spec_hash"]:
        return CanaryStatus(phase="Starting", phase_since=now, **hashes)
    return last.model_copy(update=hashes)


def decide(service: InferenceService, canary: Canary, state: CanaryStatus, given: Given) -> CanaryStatus:
    """The next state."""
    state = state.model_copy(update={"ready": given.ready if runs(state) else 0})
    if merged(service.spec.predictor, canary) == service.spec.predictor:
        return _enter(state, "Promoted", "spec.predictor says the same: spec.canary can be removed", given.now)
    match state.phase:
        case "Starting" | "Progressing":
            return _progress(canary, state, given)
        case "Promoting" if given.updated:
            message = "the predictor serves it; move it to spec.predictor and remove spec.canary (nothing restarts)"
            return _enter(state, "Promoted", message, given.now)
    return _named(state)


def _progress(canary: Canary, state: CanaryStatus, given: Given) -> CanaryStatus:
    if given.problem is not None and given.problem.reason in HOPELESS:
        return _enter(state, "RolledBack", f"{given.problem.reason}: {given.problem.message}", given.now)
    index = min(max(state.step - 1, 0), len(canary.steps) - 1)
    step = canary.steps[index]
    begun = state.step > 0 and state.percent == step.percent
    due = state.checked is not None and given.now >= state.checked + parse_duration(canary.analysis.interval)
    if state.percent and due:
        state, verdict = _check(canary, state, given)
        if verdict.word == "Fail":
            return _enter(state, "RolledBack", f"at {state.percent} %: {verdict.message}", given.now)
    if not begun:
        return _begin_step(canary, state, index, given)
    over = given.now >= (state.step_since or given.now) + parse_duration(step.pause)
    if not due or state.verdict != "Pass" or not over:
        return _named(state)
    if index + 1 < len(canary.steps):
        return _begin_step(canary, state, index + 1, given)
    return _enter(state, "Promoting", f"all steps have passed, the last with: {state.message}", given.now)


def _begin_step(canary: Canary, state: CanaryStatus, index: int, given: Given) -> CanaryStatus:
    """Tell the routers the step's percent once there are pods enough and the comparison is fair."""
    step = canary.steps[index]
    state = state.model_copy(update={"step": index + 1})
    needed = replicas(canary, state, given.stable_replicas)
    if given.ready < needed:
        why = f": {given.problem.message}" if given.problem else ""
        return _named(state.model_copy(update={"message": f"{step.percent} % waits for {needed} canary pods{why}"}))
    if given.stable is not None:
        why = f"{step.percent} % waits for the stable predictor: {given.stable.message}"
        return _named(state.model_copy(update={"message": why}))
    begun = {
        "percent": step.percent,
        "step_since": given.now,
        "checked": given.now,
        "verdict": "Waiting",
        "stable": ArmStatus(),
        "canary": ArmStatus(),
    }
    changed = state.model_copy(update=begun)
    if state.phase == "Progressing":
        return _named(changed.model_copy(update={"message": f"step {index + 1} of {len(canary.steps)}"}))
    return _enter(changed, "Progressing", f"step 1 of {len(canary.steps)}", given.now)


def _check(canary: Canary, state: CanaryStatus, given: Given) -> tuple[CanaryStatus, Verdict]:
    stable = total(report.stable for report in given.reports)
    tried = total(report.canary for report in given.reports)
    verdict = judge(canary.analysis, stable, tried)
    if not given.reports:
        verdict = Verdict("Waiting", f"none of {given.routers} routers has reported at this percent yet")
    found = {
        "checked": given.now,
        "verdict": verdict.word,
        "message": verdict.message,
        "stable": arm_status(stable),
        "canary": arm_status(tried),
    }
    return state.model_copy(update=found), verdict


def arm_status(arm: Arm) -> ArmStatus:
    """Figures as the status shows them."""
    return ArmStatus(
        requests=arm.requests,
        error_rate=round(arm.error_rate, 2),
        fallback_rate=round(arm.fallback_rate, 2),
        p50_milliseconds=_milliseconds(arm.quantile(0.5)),
        p99_milliseconds=_milliseconds(arm.quantile(0.99)),
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _enter(state: CanaryStatus, phase: str, message: str, now: datetime) -> CanaryStatus:
    if state.phase == phase:
        return _named(state)
    changes: dict[str, Any] = {"phase": phase, "message": message, "phase_since": now}
    if phase in ("Promoted", "RolledBack"):
        changes |= {"percent": 0, "ready": 0}
    return _named(state.model_copy(update=changes))


def _named(state: CanaryStatus) -> CanaryStatus:
    summary = f"{state.percent}% {state.phase}" if state.percent else state.phase
    return state.model_copy(update={"summary": summary})


def runs(state: CanaryStatus | None) -> bool:
    """Whether the canary has pods."""
    return state is not None and state.phase in ("Starting", "Progressing", "Promoting")


def promoted(state: CanaryStatus | None) -> bool:
    """Whether the predictor is to be what the canary says."""
    return state is not None and state.phase in ("Promoting", "Promoted")


def replicas(canary: Canary, state: CanaryStatus, stable: int) -> int:
    """Pods of the canary: its percent of the stable predictor's, for the step that it is in or waits for."""
    index = min(max(state.step - 1, 0), len(canary.steps) - 1)
    return max(canary.min_replicas, math.ceil(stable * canary.steps[index].percent / 100))


def look_again(canary: Canary, state: CanaryStatus, now: datetime) -> timedelta | None:
    """Time until the next check; None where none is due."""
    if state.phase != "Progressing" or state.checked is None:
        return None
    return max(state.checked + parse_duration(canary.analysis.interval) - now, timedelta(milliseconds=100))


def events(before: CanaryStatus | None, now: CanaryStatus) -> Iterable[Event]:
    """What is worth an Event on the way from one state to the next."""
    begun = before is None or before.revision != now.revision or before.spec_hash != now.spec_hash
    if before is not None and (before.phase, before.percent, begun) == (now.phase, now.percent, False):
        return
    match now.phase:
        case "RolledBack" if before is None or before.phase != "RolledBack" or begun:
            yield Event("Warning", "CanaryRolledBack", f"the canary gets no more requests: {now.message}", "Rollback")
        case "Promoting" if before is None or before.phase != "Promoting":
            yield Event(
                "Normal", "CanaryPromoting", f"the predictor becomes what the canary is: {now.message}", "Promote"
            )
        case "Promoted" if before is None or before.phase != "Promoted":
            yield Event("Normal", "CanaryPromoted", f"the canary is promoted: {now.message}", "Promote")
        case "Starting" if begun:
            yield Event("Normal", "CanaryStarted", "the canary's pods are made; it gets no requests yet", "Canary")
        case "Progressing" if before is None or before.percent != now.percent:
            yield Event("Normal", "CanaryStep", f"the canary gets {now.percent} % of the requests", "Shift")
