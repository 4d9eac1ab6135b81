"""What is worth an Event: each is a step from the status before to the status now, so it is told once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controllers.runtime.plan import Event
from headrace.api.featureset import FeatureSetStatus

_QUIET = frozenset({"Loading", "ServersNotReady"})
"""Reasons that pass by themselves."""


def transitions(before: FeatureSetStatus | None, now: Mapping[str, Any]) -> tuple[Event, ...]:
    """Events of the way from one status to the next."""
    return (*_refresh(before, now), *_ready(before, now))


def _refresh(before: FeatureSetStatus | None, now: Mapping[str, Any]) -> Iterator[Event]:
    refresh = now["refresh"]
    number, phase = refresh["number"], refresh["phase"]
    earlier = before.refresh if before else None
    ended = earlier is not None and earlier.number == number and earlier.phase == phase
    if earlier is None or earlier.number != number:
        yield Event("Normal", "RefreshStarted", f"refresh {number} begins: {refresh['trigger']}", "Refresh")
    if phase == "Succeeded" and not ended:
        how = refresh.get("mode") or "Full"
        yield Event(
            "Normal",
            "RefreshSucceeded",
            f"refresh {number} ({how}): {now['online'].get('entities', 0)} entities",
            "Refresh",
        )
    elif phase == "Failed" and not ended:
        yield Event("Warning", "RefreshFailed", f"refresh {number} failed: {refresh.get('message', '')}", "Refresh")


def _ready(before: FeatureSetStatus | None, now: Mapping[str, Any]) -> Iterator[Event]:
    current = next(item for item in now["conditions"] if item["type"] == "Ready")
    earlier = next((item for item in before.conditions if item.type == "Ready"), None) if before else None
    if earlier is not None and earlier.status == current["status"] and earlier.reason == current["reason"]:
        return
    if current["status"] == "True":
        yield Event("Normal", "Serving", current["message"], "Serve")
    elif current["reason"] not in _QUIET and current["reason"] != "RefreshFailed":
        yield Event("Warning", current["reason"], current["message"], "Observe")
