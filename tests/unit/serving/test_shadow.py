"""The shadow: compared and counted, never answered, never waited for, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from headrace.api.counts import ShadowCounts
from headrace.api.routing import Traffic
from headrace.serving.messages import Reply
from headrace.serving.protocol import InferRequest, RequestedOutput, encode_response
from headrace.serving.traffic.compare import difference
from tests.unit.serving import fakes
from tests.unit.serving.test_router import STATIC, Running, running
from tests.unit.serving.waiting import until


def reply(*, binary: bool = False, **outputs: Any) -> Reply:
    """An answer with these arrays, as a predictor encodes it."""
    request = InferRequest("", {"x": np.zeros(1, np.float32)})
    named = [(RequestedOutput(name, binary), np.asarray(array)) for name, array in outputs.items()]
    body, length = encode_response("demo", request, named)
    return Reply(200, bytes(body), None if length is None else str(length))


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize("binary", [False, True])
def test_answers_within_the_tolerance_are_the_same_and_others_are_told(binary: bool) -> None:
    mine = reply(binary=binary, y=ONES, label=np.array([1, 2]))

    def other(**changed: Any) -> str:
        return difference(mine, reply(**({"y": ONES, "label": np.array([1, 2])} | changed)), 1e-6, 1e-3)

    assert other() == ""
    assert other(y=ONES * np.float32(1.0009)) == ""
    assert other(y=ONES * np.float32(1.01)) == "output 'y': 6 of 6 values differ, by up to 0.01"
    assert other(label=np.array([1, 3])) == "output 'label': 1 of 2 values differ"
    assert other(label=np.array([1, 2], np.int32)) == "output 'label' is int32[2], not int64[2]"
    assert other(y=ONES[:1]) == "output 'y' is float32[1, 3], not float32[2, 3]"
    assert "outputs are ['extra', 'label', 'y'], not ['label', 'y']" in other(extra=ONES)


def test_nan_is_the_same_as_nan_alone() -> None:
    holes = ONES.copy()
    holes[0, 0] = np.nan
    assert difference(reply(y=holes), reply(y=holes, binary=True), 0, 0) == ""
    assert difference(reply(y=holes), reply(y=ONES), 0, 0) != ""


def test_text_is_compared_too() -> None:
    one, two = (np.array([b"a", word], dtype=object) for word in (b"b", b"c"))
    assert difference(reply(y=one), reply(y=one), 0, 0) == ""
    assert difference(reply(y=one), reply(y=two), 0, 0) == "output 'y': 1 of 2 values differ"


def test_an_answer_that_cannot_be_read_is_a_difference() -> None:
    assert "cannot be read" in difference(reply(y=ONES), Reply(200, b"{}"), 0, 0)


def score(value: float) -> fakes.Behaviour:
    """A replica that answers one number."""

    async def act(fake: fakes.FakeReplica, writer: asyncio.StreamWriter) -> None:
        output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [value]}
        writer.write(fakes.http(200, orjson.dumps({"model_name": "demo", "outputs": [output]})))

    return act


@asynccontextmanager
async def shadowed(
    tmp_path: Path, primary: fakes.Behaviour, shadow: fakes.Behaviour, **route: Any
) -> AsyncIterator[tuple[Running, fakes.FakeReplica]]:
    file = tmp_path / "traffic.json"
    async with fakes.replicas(primary, shadow) as [one, two]:
        by_host = {"demo-predictor.ns.svc": [one.host], "demo-shadow.ns.svc": [two.host]}
        word: dict[str, Any] = {"host": "demo-shadow.ns.svc", "port": two.port, "percent": 100, "revision": "s1"}
        word |= {"absoluteTolerance": 1e-6, "relativeTolerance": 1e-3, "timeout": "300ms"} | route
        traffic = Traffic.model_validate({"revision": "r1", "reportSeconds": 0.05, "shadow": word})
        file.write_text(traffic.model_dump_json(by_alias=True))
        async with running([one], STATIC, by_host=by_host, traffic=file) as router:
            yield router, two


def counts(router: Running) -> ShadowCounts:
    report = router.reports[-1].traffic
    return (report and report.shadow) or ShadowCounts(revision="")


@pytest.mark.parametrize(
    ("shadow", "found"),
    [(score(2.0), (0, 0)), (score(2.5), (3, 0)), (fakes.status(500), (0, 3)), (fakes.stall, (0, 3))],
    ids=["same", "different", "fails", "stalls"],
)
async def test_the_client_gets_the_primarys_answer_and_the_shadows_is_counted(
    tmp_path: Path, shadow: fakes.Behaviour, found: tuple[int, int]
) -> None:
    async with shadowed(tmp_path, score(2.0), shadow) as (router, _):
        begun = asyncio.get_running_loop().time()
        for _ in range(3):
            response, answer = await router.infer()
            assert (response.status, answer["outputs"][0]["data"]) == (200, [2.0])
            assert (response.headers["headrace-step"], "headrace-arm" in response.headers) == ("predictor", False)
        assert asyncio.get_running_loop().time() - begun < 0.3, "nobody waits for the shadow"
        await until(lambda: counts(router).requests == 3, "all copies have come to an end")
        assert (counts(router).differing, counts(router).errors) == found
        outcome = "error" if found[1] else "different" if found[0] else "same"
        text = (await router.get("/metrics"))[1]
        assert f'headrace_inference_shadow_requests_total{{outcome="{outcome}",service="demo"}} 3.0' in text
        if found[0]:
            assert counts(router).example == "output 'y': 1 of 1 values differ, by up to 0.5"


async def test_while_the_shadow_is_busy_copies_are_dropped_and_answers_are_not(tmp_path: Path) -> None:
    async with shadowed(tmp_path, score(2.0), fakes.stall, maxConcurrency=2, timeout="5s") as (router, shadow):
        for _ in range(10):
            assert (await router.infer())[0].status == 200
        await until(lambda: counts(router).dropped == 8, "what finds no room is dropped")
        assert shadow.asked <= 2


async def test_what_the_primary_does_not_answer_is_not_mirrored(tmp_path: Path) -> None:
    async with shadowed(tmp_path, fakes.status(500), score(2.0)) as (router, shadow):
        assert (await router.infer())[0].headers["headrace-step"] == "last"
        assert shadow.asked == 0


async def test_taking_the_shadow_back_stops_the_copies(tmp_path: Path) -> None:
    async with shadowed(tmp_path, score(2.0), score(2.0)) as (router, shadow):
        await router.infer()
        await until(lambda: shadow.asked == 1, "a copy")
        (tmp_path / "traffic.json").write_text("")
        await until(lambda: router.reports[-1].traffic is None, "the word is taken back")
        for _ in range(5):
            await router.infer()
        assert shadow.asked == 1
