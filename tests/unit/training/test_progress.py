"""The figures that `kubectl get` shows."""

from __future__ import annotations

import pytest

from headrace.training.progress import Report, Throughput, significant


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (2.302585, 4, "2.303"),
        (0.0123456, 4, "0.01235"),
        (12345.6, 3, "12300"),
        (0.99999, 4, "1.000"),
        (999.9, 3, "1000"),
        (1.5e-7, 4, "1.500e-07"),
        (0.0, 4, "0"),
        (-3.14159, 3, "-3.14"),
        (float("inf"), 4, "inf"),
    ],
)
def test_significant_digits(value: float, digits: int, text: str) -> None:
    assert significant(value, digits) == text
    assert float(text) == pytest.approx(value, rel=0.5 * 10 ** (1 - digits)) or value == 0


def test_throughput_is_that_of_the_last_seconds() -> None:
    now = [0.0]
    throughput = Throughput(lambda: now[0])
    assert throughput.rate() == 0
    for _ in range(2000):  # 100/s for 20 s
        now[0] += 0.01
        throughput.add(1)
    assert throughput.rate() == pytest.approx(100, rel=0.01)
    for _ in range(150):  # then 10/s for 15 s, longer than the window
        now[0] += 0.1
        throughput.add(1)
    assert throughput.rate() == pytest.approx(10, rel=0.03)


def test_a_report_is_progress_and_what_else_the_operator_reads() -> None:
    report = Report(attempt=2, backend="gloo")
    report.resumed_from_step = 10
    report.update({"epoch": 1, "epochs": 4, "step": 23, "steps": 92}, loss=0.123456)
    report.update({"epoch": None, "epochs": None, "step": 46, "steps": None})
    report.update({}, metrics={"accuracy": 0.9722222}, model_uri="s3://b/model.onnx")
    assert report.content() == {
        "attempt": 2,
        "epoch": 1,
        "epochs": 4,
        "step": 46,
        "steps": 92,
        "percent": 50,
        "loss": "0.1235",
        "throughput": "",
        "learningRate": "",
        "backend": "gloo",
        "resumedFromStep": 10,
        "metrics": {"accuracy": "0.972222"},
        "modelUri": "s3://b/model.onnx",
    }


def test_percent_never_says_done_before_it_is() -> None:
    report = Report(1, "gloo")
    report.update({"step": 999, "steps": 1000})
    assert report.content()["percent"] == 99
