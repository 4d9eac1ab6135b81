"""The report of rank 0 is somebody else's data: what is sound gets through, the rest is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controllers.runtime.objects import REPORT, Manifest
from controllers.trainingjob import observations
from controllers.trainingjob.report import MalformedReportError, read
from headrace.api.trainingjob import TrainingJobStatus
from tests.unit.trainingjob.worlds import NOW, ago, job, pod

GOOD = {
    "attempt": 2, "epoch": 3, "epochs": 10, "step": 120, "steps": 400, "percent": 30, "loss": "0.1235",
    "throughput": "12300", "learningRate": "0.001", "estimatedRemainingSeconds": 56, "backend": "gloo",
    "resumedFromStep": 90, "metrics": {"accuracy": "0.9722"}, "modelUri": "s3://models/digits/model.onnx",
}  # fmt: skip
MEASURED = {
    "stepTime": {"total": "0.2", "data": "0.05", "communication": "0.03", "compute": "0.12"},
    "goodput": {
        "since": NOW.timestamp() - 100, "at": NOW.timestamp(), "useful": 70, "startup": 5, "restart": 12,
        "checkpoint": 1, "lostSteps": 8, "hang": 0,
    },
    "checkpoint": {"step": 110, "bytes": 4096, "seconds": "0.2", "pauseSeconds": "0.001"},
}  # fmt: skip


def reporting(content: Any) -> Manifest:
    made = pod(job(), 0, attempt=2)
    made["metadata"]["annotations"][REPORT] = content if isinstance(content, str) else json.dumps(content)
    return made


def test_a_report_is_read() -> None:
    report = read(reporting(GOOD))
    assert report is not None
    assert report.progress().manifest() == {
        k: v for k, v in GOOD.items() if k not in ("attempt", "metrics", "modelUri")
    }
    assert report.metrics == {"accuracy": "0.9722"}
    assert report.model_uri == "s3://models/digits/model.onnx"


@pytest.mark.parametrize("change", [{"loss": "nan"}, {"loss": "inf"}, {"loss": "1.2e-07"}, {"loss": ""}, {"more": 1}])
def test_odd_but_sound(change: dict[str, Any]) -> None:
    assert read(reporting(GOOD | change)) is not None


def test_there_is_none_before_the_pod_and_none_about_another_attempt() -> None:
    assert read(None) is None
    assert read(pod(job(), 0)) is None
    assert read(reporting(GOOD | {"attempt": 1})) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Invalid JSON"),
        ("[]", "object"),
        (GOOD | {"step": -1}, "step"),
        (GOOD | {"step": 10**30}, "step"),
        (GOOD | {"percent": 101}, "percent"),
        (GOOD | {"loss": "very low"}, "loss"),
        (GOOD | {"loss": "1" * 40}, "loss"),
        (GOOD | {"backend": "<script>"}, "backend"),
        (GOOD | {"metrics": {str(number): "1" for number in range(65)}}, "metrics"),
        (GOOD | {"metrics": {"a": "b"}}, "metrics.a"),
        (GOOD | {"modelUri": "javascript:alert(1)"}, "modelUri"),
        (GOOD | {"stepTime": {"total": "soon"}}, "stepTime.total"),
        (GOOD | {"goodput": {"since": -1, "at": 0}}, "goodput.since"),
        (GOOD | {"goodput": {"since": 0, "at": 1e300}}, "goodput.at"),
        (GOOD | {"checkpoint": {"problem": {"reason": "no room"}}}, "checkpoint.problem.reason"),
        (GOOD | {"checkpoint": {"passedOver": "x" * 1025}}, "checkpoint.passedOver"),
        (GOOD | {"registered": {"url": "javascript:alert(1)"}}, "registered.url"),
        ("x" * 20_000, "20000 characters"),
    ],
)
def test_what_is_refused(content: Any, says: str) -> None:
    with pytest.raises(MalformedReportError, match=says):
        read(reporting(content))


def before(**fields: Any) -> TrainingJobStatus:
    return TrainingJobStatus.model_validate({"startTime": ago(120), **fields})


def test_goodput_counts_from_the_start_of_the_job() -> None:
    figures = observations.figures(before(), read(reporting(GOOD | MEASURED)))
    assert figures["goodput"].manifest() == {
        "percent": 58, "usefulSeconds": 70, "startupSeconds": 25, "restartSeconds": 12, "checkpointSeconds": 1,
        "lostStepSeconds": 8, "hangSeconds": 0, "otherSeconds": 4,
    }  # fmt: skip
    assert figures["step_time"].compute == "0.12"
    assert figures["checkpoint"].step == 110


def test_what_was_measured_stays_while_nobody_reports() -> None:
    earlier = before(checkpoint={"step": 7}, goodput={"percent": 50})
    figures = observations.figures(earlier, None)
    assert (figures["checkpoint"].step, figures["goodput"].percent) == (7, 50)


def test_a_checkpoint_that_fails_is_a_condition_with_what_remains() -> None:
    failing = MEASURED["checkpoint"] | {"problem": {"reason": "StorageFull", "message": "s3://b/c: no room; delete"}}  # type: ignore[operator]
    report = read(reporting(GOOD | {"checkpoint": failing}))
    (condition,) = observations.wanted(report)
    assert (condition.type, condition.status, condition.reason) == ("CheckpointFailing", True, "StorageFull")
    assert "the checkpoint of step 110 is kept: s3://b/c: no room" in condition.message
    said = {"type": "CheckpointFailing", "status": "True", "reason": "StorageFull", "message": condition.message}
    assert [event.reason for event in observations.events(before(), report, [said])] == ["StorageFull"]
    known = before(conditions=[{**said, "lastTransitionTime": ago(5)}], progress={"resumedFromStep": 90})
    assert observations.events(known, report, [said]) == [], "once is enough"
    assert observations.wanted(read(reporting(GOOD | MEASURED))) == []


def test_a_damaged_checkpoint_is_an_event_of_the_attempt_that_met_it() -> None:
    report = read(reporting(GOOD | {"checkpoint": {"passedOver": "the checkpoint s3://b/step-120 cannot be used"}}))
    (event,) = observations.events(before(), report, [])
    assert (event.type, event.reason) == ("Warning", "CheckpointDamaged")
    assert "step-120" in event.note
    assert observations.events(before(progress={"resumedFromStep": 90}), report, []) == []
