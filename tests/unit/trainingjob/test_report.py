"""The report of rank 0 is somebody else's data: what is sound gets through, the rest is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controllers.runtime.objects import REPORT, Manifest
from controllers.trainingjob.report import MalformedReportError, read
from tests.unit.trainingjob.worlds import job, pod

GOOD = {
    "attempt": 2, "epoch": 3, "epochs": 10, "step": 120, "steps": 400, "percent": 30, "loss": "0.1235",
    "throughput": "12300", "backend": "gloo", "resumedFromStep": 90, "metrics": {"accuracy": "0.9722"},
    "modelUri": "s3://models/digits/model.onnx",
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
        ("x" * 20_000, "20000 characters"),
    ],
)
def test_what_is_refused(content: Any, says: str) -> None:
    with pytest.raises(MalformedReportError, match=says):
        read(reporting(content))
