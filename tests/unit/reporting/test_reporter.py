"""What a pod's report does to the work that it reports on (nothing), and to the API server (little)."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.reporting import Reporter, ReportRefused, in_cluster, pod_reporter


class Sink:
    """Keeps what was sent and when; `fault` may raise first."""

    def __init__(self, fault: Callable[[], None] = lambda: None) -> None:
        self.lines: list[str] = []
        self.times: list[float] = []
        self.tries = 0
        self._fault = fault
        self._changed = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._changed:
            self.tries += 1
            self._changed.notify_all()
        self._fault()
        with self._changed:
            self.lines.append(line)
            self.times.append(time.monotonic())
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"{self.tries} tries, {self.lines}"


def test_the_latest_report_wins_and_the_rate_is_bounded() -> None:
    sink = Sink()
    reporter = Reporter(sink, min_interval=0.2)
    end = time.monotonic() + 1.0
    step = 0
    while time.monotonic() < end:
        step += 1
        reporter.report({"step": step})
        time.sleep(0.001)
    assert reporter.close()

    assert json.loads(sink.lines[-1]) == {"step": step}
    gaps = [b - a for a, b in zip(sink.times, sink.times[1:-1], strict=False)]
    assert len(sink.lines) <= 7
    assert min(gaps) >= 0.19


def test_what_has_not_changed_is_not_sent_again() -> None:
    sink = Sink()
    reporter = Reporter(sink, min_interval=0.01)
    for _ in range(3):
        reporter.report({"step": 1})
        sink.wait_for(lambda: len(sink.lines) == 1)
        time.sleep(0.03)
    reporter.close()
    assert sink.lines == ['{"step":1}']


def test_a_sink_that_hangs_neither_blocks_the_work_nor_its_end() -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait(30)

    sink = Sink(hang)
    reporter = Reporter(sink, min_interval=0)
    started = time.monotonic()
    for step in range(1000):
        reporter.report({"step": step})
    assert time.monotonic() - started < 0.5
    assert reporter.close(timeout=0.2) is False
    assert time.monotonic() - started < 2
    release.set()


def test_errors_are_logged_once_per_kind_and_the_last_report_still_arrives(caplog: pytest.LogCaptureFixture) -> None:
    faults = [ReportRefused(403, "HTTP 403: forbidden"), OSError("refused"), OSError("refused again")]

    def fault() -> None:
        if faults:
            raise faults.pop(0)

    sink = Sink(fault)
    reporter = Reporter(sink, min_interval=0.01)
    with caplog.at_level(logging.WARNING):
        reporter.report({"step": 1})
        sink.wait_for(lambda: sink.tries >= 1)
        reporter.report({"step": 2})
        assert reporter.close(timeout=20)
    assert sink.lines == ['{"step":2}']
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == ["HTTP 403: forbidden", "refused"]


def test_a_report_that_is_no_json_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    reporter = Reporter(sink, min_interval=0)
    with caplog.at_level(logging.WARNING):
        reporter.report({"loss": float("nan")})
        assert reporter.close()
    assert sink.lines == []
    assert "could not be sent" in caplog.text


async def test_an_event_loop_can_close_it_without_being_blocked() -> None:
    sink = Sink()
    reporter = Reporter(sink)
    reporter.report({"answering": "predictor"})
    assert await reporter.aclose()
    assert sink.lines == ['{"answering":"predictor"}']


def test_outside_kubernetes_the_given_sink_gets_the_reports() -> None:
    sink = Sink()
    reporter = pod_reporter(sink)
    reporter.report({"step": 1})
    assert reporter.close()
    assert sink.lines == ['{"step":1}']


def test_a_pod_is_known_by_its_name_and_its_service_account(tmp_path: Path) -> None:
    names = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "POD_NAME": "job-worker-0", "POD_NAMESPACE": "team"}
    assert not in_cluster(names, tmp_path)
    (tmp_path / "token").write_text("t")
    assert in_cluster(names, tmp_path)
    assert not in_cluster(names | {"POD_NAME": ""}, tmp_path)
