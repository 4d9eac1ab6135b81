"""The request log: what is kept of a request and its answer, and that nothing waits for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from pyarrow import dataset

from headrace.serving import request_log
from headrace.serving.messages import Query, Reply, refusal
from headrace.serving.request_log import Record, RequestLog
from headrace.serving.request_table import ParquetSink
from headrace.storage import AccessDenied, Store, Unreachable
from tests.unit.serving import fakes
from tests.unit.serving.test_router import STATIC, running
from tests.unit.serving.waiting import until

TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2]}
QUERY = Query(json.dumps({"id": "42", "inputs": [TENSOR]}).encode())
REPLY = Reply(200, json.dumps({"outputs": [{"name": "y", "shape": [1], "datatype": "INT64", "data": [7]}]}).encode())


def table(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.dataset(folder, partitioning="hive").to_table().sort_by("time").to_pylist()
    return rows


def test_rows_of_json_binary_refused_and_unanswered_requests(tmp_path: Path) -> None:
    values = np.array([1.5, np.nan], np.float32).tobytes()
    head = json.dumps({"inputs": [TENSOR | {"data": None, "parameters": {"binary_data_size": 8}}]})
    binary = Query(head.replace('"data": null, ', "").encode() + values, str(len(head.replace('"data": null, ', ""))))
    records = [
        Record(1_700_000_000.25, "predictor", "canary", 0.0125, QUERY, REPLY),
        Record(1_700_000_001.0, "predictor", "", 0.5, binary, REPLY),
        Record(1_700_000_002.0, "predictor", "", 0.5, Query(b"{"), refusal(400, "the body is no valid JSON")),
        Record(1_700_000_003.0, "", "", 1.0, QUERY, None),
    ]
    ParquetSink("digits", lambda: Store.open(f"file://{tmp_path}"), "digits-0").write(records)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")] == [
        "date=2023-11-14/digits-0-1700000003000.parquet"
    ]
    first, second, third, fourth = table(tmp_path)
    assert (first["id"], first["service"], first["step"], first["arm"]) == ("42", "digits", "predictor", "canary")
    assert (first["status"], first["milliseconds"], first["time"].microsecond) == (200, 12.5, 250_000)
    assert json.loads(first["inputs"]) == {"x": {"datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.0]}}
    assert json.loads(first["outputs"]) == {"y": {"datatype": "INT64", "shape": [1], "data": [7]}}
    assert json.loads(second["inputs"])["x"]["data"] == [1.5, None]
    assert (third["inputs"], third["outputs"], third["error"]) == (None, None, "the body is no valid JSON")
    assert (fourth["status"], fourth["error"], fourth["outputs"]) == (503, "no step could answer", None)


class Slow:
    """A sink that answers when it is told to."""

    def __init__(self, *errors: Exception) -> None:
        self.batches: list[int] = []
        self.errors = list(errors)

    def write(self, records: Sequence[Record]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append(len(records))


def figures(log: RequestLog) -> tuple[float | None, float | None]:
    def of(outcome: str) -> float | None:
        labels = {"service": "digits", "outcome": outcome}
        return log.registry.get_sample_value("headrace_request_log_records_total", labels)

    return of("written"), of("dropped")


def logged(sink: Any, percent: int = 100, interval: float = 0.01, **more: Any) -> RequestLog:
    return RequestLog("digits", sink, percent, interval, CollectorRegistry(), **more)


def test_a_part_is_taken_by_chance() -> None:
    chances = iter([0.05, 0.5, 0.099, 0.1])
    log = logged(Slow(), percent=10, chance=lambda: next(chances))
    for _ in range(4):
        log.offer(QUERY, REPLY, "predictor", "", 0.1)
    assert len(log._waiting) == 2


async def test_what_finds_no_room_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "MAX_BYTES", 3000)
    sink = Slow()
    log = logged(sink)
    for _ in range(10):
        log.offer(QUERY, REPLY, "predictor", "", 0.1)
    taken = len(log._waiting)
    assert 1 < taken < 10
    task = asyncio.ensure_future(log.run())
    await until(lambda: figures(log) == (taken, 10 - taken), "they are written")
    log.offer(QUERY, REPLY, "predictor", "", 0.1)  # there is room again; and the last one is written at the end
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sum(sink.batches) == taken + 1


async def test_a_store_that_refuses_costs_records_and_one_that_is_away_costs_none() -> None:
    refusing = logged(Slow(AccessDenied("s3://x", "no", "ask")))
    away = logged(Slow(Unreachable("s3://x", "no answer", "wait")))
    tasks = []
    for log in (refusing, away):
        log.offer(QUERY, REPLY, "predictor", "", 0.1)
        tasks.append(asyncio.ensure_future(log.run()))
    await until(lambda: figures(refusing) == (0, 1), "it is given up")
    await until(lambda: figures(away) == (1, 0), "it is written when the store is back")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_router_logs_what_it_answered(tmp_path: Path) -> None:
    kept = {"storageUri": f"file://{tmp_path}", "percent": 100, "interval": "50ms"}
    async with fakes.replicas(fakes.answer) as [one], running([one], STATIC, request_log=kept) as router:
        await router.until(lambda: router.answering == "predictor", "the primary answers")
        assert (await router.infer())[0].status == 200
        written = 'headrace_request_log_records_total{outcome="written",service="demo"} 1.0'

        async def counted() -> bool:
            return written in (await router.get("/metrics"))[1]

        await until(counted, "it is written")
    (row,) = table(tmp_path)
    assert (row["service"], row["step"], row["status"]) == ("demo", "predictor", 200)
