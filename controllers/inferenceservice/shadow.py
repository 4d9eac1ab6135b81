"""The shadow's summary: what the routers counted, added up each half minute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from controllers.runtime.plan import Event
from controllers.runtime.podstate import Problem
from headrace.api.counts import ShadowCounts
from headrace.api.inferenceservice import Predictor
from headrace.api.inferenceservice.traffic import Shadow, ShadowStatus
from headrace.api.latency import quantile

SUMMARY = timedelta(seconds=30)
"""Time between two looks at the counts: each is a write of the status."""
FIRST = timedelta(seconds=5)
"""The same, before there is anything to look at."""


def predictor(of: Predictor, shadow: Shadow) -> Predictor:
    """The predictor as the shadow would have it."""
    names = ("model", "resources", "env", "timeout", "max_concurrency")
    changes = {name: value for name in names if (value := getattr(shadow, name)) is not None}
    # Its pods are its own, wherever the primary's model runs.
    return of.model_copy(update={**changes, "inference": "Remote"})


def status(
    last: ShadowStatus | None,
    revision: str,
    counts: Sequence[ShadowCounts],
    ready: int,
    problem: Problem | None,
    now: datetime,
) -> ShadowStatus:
    """The summary now.

    Args:
        last: The one before.
        revision: Of the shadow; another one begins anew.
        counts: What the ready routers counted of it.
        ready: Pods that are ready.
        problem: Why not all are, or None.
        now: The time.
    """
    pods = {"ready": ready, "problem": problem.message if problem else ""}
    if last is None or last.revision != revision:
        return ShadowStatus(summary="0/0", revision=revision, checked=now, **pods)
    if not counts or (last.checked is not None and now < last.checked + _pause(last)):
        return last.model_copy(update=pods)
    requests, differing, errors, dropped = (
        sum(getattr(item, name) for item in counts) for name in ("requests", "differing", "errors", "dropped")
    )
    answered = requests - errors
    return ShadowStatus(
        summary=f"{differing}/{requests}",
        requests=requests,
        differing=differing,
        differing_rate=round(100.0 * differing / answered, 2) if answered else 0.0,
        errors=errors,
        dropped=dropped,
        # Of several always the same one, so that the status does not change with the order of pods.
        example=min((item.example for item in counts if item.example), default=""),
        primary_p99_milliseconds=_p99(item.primary_latency for item in counts),
        shadow_p99_milliseconds=_p99(item.shadow_latency for item in counts),
        revision=revision,
        checked=now,
        **pods,
    )


def look_again(state: ShadowStatus, now: datetime) -> timedelta:
    """Time until the next look."""
    # A look that is due waits for a report, which wakes by itself.
    return max((state.checked or now) + _pause(state) - now, timedelta(seconds=1))


def _pause(state: ShadowStatus) -> timedelta:
    return SUMMARY if state.requests else FIRST


def events(last: ShadowStatus | None, now: ShadowStatus | None, percent: int) -> Iterable[Event]:
    """What is worth an Event."""
    if now is None:
        if last is not None:
            yield Event("Normal", "ShadowStopped", f"nothing is mirrored any more; it came to {last.summary}", "Mirror")
        return
    if last is None or last.revision != now.revision:
        yield Event("Normal", "ShadowStarted", f"{percent} % of the requests are mirrored to the shadow", "Mirror")
    elif not last.differing and now.differing:
        yield Event("Normal", "ShadowDiffers", f"the shadow answers otherwise: {now.example}", "Mirror")
    if now.problem and (last is None or last.problem != now.problem) and last is not None and last.ready:
        yield Event("Warning", "ShadowNotReady", now.problem, "Mirror")


def _p99(latencies: Iterable[Mapping[int, int]]) -> float | None:
    total: Counter[int] = Counter()
    for item in latencies:
        total.update(item)
    found = quantile(total, 0.99)
    return None if found is None else round(found * 1000, 1)
