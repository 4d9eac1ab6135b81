"""What is worth an Event: each is a step from the status before to the status now, so it is told once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controllers.inferenceservice.rules import FALLBACK_ANSWERING, PENDING_REASONS, ROLLING_OUT
from controllers.runtime.plan import Event
from headrace.api.chain import PREDICTOR
from headrace.api.inferenceservice import InferenceServiceStatus

PARTS: Mapping[str, str] = {"RouterReady": "router", "PredictorReady": "predictor"}
"""Conditions of the parts."""


def transitions(before: InferenceServiceStatus | None, now: Mapping[str, Any]) -> tuple[Event, ...]:
    """Events of the way from one status to the next."""
    return (
        *_answering(before, now),
        *_unavailable(before, now),
        *(event for type_ in PARTS for event in _part(type_, before, now)),
    )


def _answering(before: InferenceServiceStatus | None, now: Mapping[str, Any]) -> Iterator[Event]:
    earlier, current = before.answering if before else "", now["answering"]
    if current == earlier or not current:
        return
    if current != PREDICTOR:
        # Fallbacks are up before a large model is loaded; only the loss of a primary that answered is a warning.
        lost = earlier == PREDICTOR
        ready = _condition(now, "Ready")
        why = (
            ready["message"] if ready["reason"] == FALLBACK_ANSWERING else f"step {current} answers: {ready['message']}"
        )
        yield Event("Warning" if lost else "Normal", FALLBACK_ANSWERING, why, "Fallback")
    elif earlier:
        yield Event("Normal", "PrimaryRecovered", f"the primary answers again, after step {earlier}", "Recover")
    else:
        yield Event("Normal", "PrimaryAnswers", f"the primary answers at {now['url']}", "Serve")


def _unavailable(before: InferenceServiceStatus | None, now: Mapping[str, Any]) -> Iterator[Event]:
    earlier = next((item for item in before.conditions if item.type == "Available"), None) if before else None
    current = _condition(now, "Available")
    if earlier is not None and earlier.status == "True" and current["status"] == "False":
        yield Event("Warning", "Unavailable", current["message"], "Observe")


def _part(type_: str, before: InferenceServiceStatus | None, now: Mapping[str, Any]) -> Iterator[Event]:
    earlier = next((item for item in before.conditions if item.type == type_), None) if before else None
    current = _condition(now, type_)
    if earlier is not None and earlier.reason == current["reason"]:
        return
    part = PARTS[type_]
    if current["status"] == "True":
        if earlier is not None and earlier.reason == ROLLING_OUT:
            yield Event("Normal", "RolloutComplete", f"every {part} pod is updated and ready", "RollOut")
    elif current["reason"] == ROLLING_OUT:
        yield Event("Normal", "RolloutStarted", current["message"], "RollOut")
    elif current["reason"] not in PENDING_REASONS:
        yield Event("Warning", current["reason"], current["message"], "Observe")


def _condition(status: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(item for item in status["conditions"] if item["type"] == type_)
    return found
