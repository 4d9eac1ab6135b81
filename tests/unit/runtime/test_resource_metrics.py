"""The figure that says how many resources are well, by kind and reason."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from controllers.runtime.metrics import Metrics


def resource(status: str, reason: str) -> dict[str, Any]:
    conditions = [{"type": "Scheduled", "status": "True", "reason": "Placed"}, {"type": "Ready", "status": status}]
    conditions[1]["reason"] = reason
    return {"status": {"conditions": conditions}}


def test_resources_are_counted_by_their_ready_condition() -> None:
    registry = CollectorRegistry()
    jobs = [resource("True", "Training"), resource("False", "WorkerFailed"), resource("False", "WorkerFailed"), {}]
    metrics = Metrics(registry)
    metrics.resources("TrainingJob", lambda: jobs)
    metrics.resources("InferenceService", lambda: [resource("True", "PrimaryAnswers")])

    def count(kind: str, ready: str, reason: str) -> float | None:
        return registry.get_sample_value("headrace_resources", {"kind": kind, "ready": ready, "reason": reason})

    assert count("TrainingJob", "True", "Training") == 1
    assert count("TrainingJob", "False", "WorkerFailed") == 2
    assert count("TrainingJob", "Unknown", "") == 1
    assert count("InferenceService", "True", "PrimaryAnswers") == 1
    jobs.clear()
    assert count("TrainingJob", "False", "WorkerFailed") is None
