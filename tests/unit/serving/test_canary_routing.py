"""A router told to split its requests: shares, stickiness, fallback to the stable model, counts, no lost request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.api.counts import TrafficReport
from headrace.api.routing import Traffic
from tests.unit.serving import fakes
from tests.unit.serving.test_grpc import calling, raw_request
from tests.unit.serving.test_router import STATIC, Running, running
from tests.unit.serving.waiting import until


class Split:
    """The file that tells a router where requests go."""

    def __init__(self, file: Path, port: int) -> None:
        self.file = file
        self.port = port
        self.told = 0

    def tell(self, percent: int, **more: Any) -> str:
        """Another percent for the canary; returns the revision."""
        self.told += 1
        canary = {"host": "demo-canary.ns.svc", "port": self.port, "timeout": "400ms", "percent": percent, "salt": "s"}
        word = {"revision": f"r{self.told}", "reportSeconds": 0.05, "canary": canary | more.pop("canary", {}), **more}
        Traffic.model_validate(word)
        self.file.write_text(Traffic.model_validate(word).model_dump_json(by_alias=True))
        return f"r{self.told}"

    def clear(self) -> None:
        self.file.write_text("")


@asynccontextmanager
async def split(
    tmp_path: Path, stable: fakes.Behaviour, canary: fakes.Behaviour
) -> AsyncIterator[tuple[Running, Split, fakes.FakeReplica, fakes.FakeReplica]]:
    file = tmp_path / "traffic.json"
    async with fakes.replicas(stable, canary) as [one, two]:
        by_host = {"demo-predictor.ns.svc": [one.host], "demo-canary.ns.svc": [two.host]}
        async with running([one], STATIC, by_host=by_host, traffic=file, grpc=True) as router:
            yield router, Split(file, two.port), one, two


def report(router: Running) -> TrafficReport | None:
    return router.reports[-1].traffic


async def taken(router: Running, revision: str) -> None:
    await until(lambda: (r := report(router)) is not None and r.revision == revision, "the router takes the word")


async def arms(router: Running, count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(count):
        response, _ = await router.infer()
        assert response.status == 200
        found[response.headers.get("headrace-arm", "")] += 1
    return found


async def test_without_a_word_there_is_no_arm(tmp_path: Path) -> None:
    async with split(tmp_path, fakes.answer, fakes.answer) as (router, _, _, canary):
        assert await arms(router, 5) == {"": 5}
        assert canary.asked == 0
        assert report(router) is None


async def test_requests_are_dealt_by_percent_and_a_unit_stays_where_it_is(tmp_path: Path) -> None:
    async with split(tmp_path, fakes.answer, fakes.answer) as (router, word, _, canary):
        await taken(router, word.tell(30, unitHeader="X-User-Id"))
        first = {unit: (await router.infer(x_user_id=unit))[0].headers["headrace-arm"] for unit in map(str, range(60))}
        assert set(first.values()) == {"stable", "canary"}
        again = {unit: (await router.infer(x_user_id=unit))[0].headers["headrace-arm"] for unit in first}
        assert again == first
        await taken(router, word.tell(60, unitHeader="x-user-id"))
        later = {unit: (await router.infer(x_user_id=unit))[0].headers["headrace-arm"] for unit in first}
        assert {(first[unit], later[unit]) for unit in first} == {
            ("stable", "stable"),
            ("canary", "canary"),
            ("stable", "canary"),
        }
        response, answer = await router.infer(x_user_id=next(unit for unit in later if later[unit] == "canary"))
        assert (answer["id"], response.headers["headrace-step"]) == (canary.host, "canary")
        text = (await router.get("/metrics"))[1]
        assert 'headrace_inference_arm_requests_total{arm="canary",outcome="ok",service="demo",step="canary"}' in text
        assert 'headrace_inference_breaker_state{service="demo",step="canary"} 0.0' in text
        assert 'headrace_inference_arm_percent{arm="canary",service="demo"} 60.0' in text


async def test_a_unit_is_in_the_same_arm_by_rest_and_by_grpc(tmp_path: Path) -> None:
    async with split(tmp_path, fakes.answer, fakes.answer) as (router, word, _, _), calling(router.grpc_port) as infer:
        await taken(router, word.tell(50, unitHeader="X-User-Id"))
        found = set()
        for unit in map(str, range(12)):
            call = infer(raw_request(np.ones((1, 4), np.float32), "FP32"), metadata=(("x-user-id", unit),))
            await call
            arm = dict(await call.trailing_metadata())["headrace-arm"]
            assert (await router.infer(x_user_id=unit))[0].headers["headrace-arm"] == arm
            found.add(arm)
        assert found == {"stable", "canary"}


@pytest.mark.parametrize(
    ("behaviour", "errors"),
    [(fakes.status(500), True), (fakes.stall, True), (fakes.status(503, "Retry-After: 1"), False)],
    ids=["fails", "stalls", "is full"],
)
async def test_what_the_canary_does_not_answer_the_stable_model_does_and_it_is_counted(
    tmp_path: Path, behaviour: fakes.Behaviour, errors: bool
) -> None:
    async with split(tmp_path, fakes.answer, behaviour) as (router, word, stable, _):
        await taken(router, word.tell(100, canary={"timeout": "50ms"}))
        for _ in range(3):
            response, answer = await router.infer()
            assert (response.status, answer["id"]) == (200, stable.host)
            assert response.headers["headrace-arm"] == "canary"
            assert response.headers["headrace-step"] == "predictor"
        await until(lambda: (r := report(router)) is not None and r.canary.requests == 3, "the counts are reported")
        found = report(router)
        assert found is not None
        assert (found.canary.errors, found.canary.fallbacks) == (3 if errors else 0, 3)
        assert sum(found.canary.latency.values()) == 3
        assert found.stable.requests == 0


@pytest.mark.parametrize(
    ("stable", "status", "errors"), [(fakes.status(400), 400, 0), (fakes.answer, 200, 1)], ids=["both", "it alone"]
)
async def test_what_the_canary_refuses_the_stable_model_is_asked_too(
    tmp_path: Path, stable: fakes.Behaviour, status: int, errors: int
) -> None:
    async with split(tmp_path, stable, fakes.status(400)) as (router, word, _, _):
        await taken(router, word.tell(100))
        response, _ = await router.infer()
        assert (response.status, response.headers["headrace-fallback-reason"]) == (status, "canary=refused")
        await until(lambda: (r := report(router)) is not None and r.canary.requests == 1, "it is counted")
        found = report(router)
        assert found is not None
        assert (found.canary.errors, found.canary.fallbacks) == (errors, errors)


async def test_steps_and_rollback_under_load_lose_no_request_and_count_anew(tmp_path: Path) -> None:
    async with split(tmp_path, fakes.answer, fakes.answer) as (router, word, _, canary):
        stop = False
        statuses: Counter[int] = Counter()

        async def load() -> None:
            while not stop:
                statuses[(await router.infer())[0].status] += 1

        clients = [asyncio.ensure_future(load()) for _ in range(4)]
        for percent in (0, 10, 50, 100):
            await taken(router, word.tell(percent))
        await until(lambda: canary.asked > 20, "the canary answers")
        word.clear()
        await until(lambda: report(router) is None, "the word is taken back")
        asked = canary.asked
        for _ in range(10):
            await router.infer()
        stop = True
        await asyncio.gather(*clients)
        assert set(statuses) == {200}
        assert canary.asked <= asked + len(clients)


async def test_a_word_that_cannot_be_read_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with split(tmp_path, fakes.answer, fakes.answer) as (router, word, _, _):
        await taken(router, word.tell(100))
        word.file.write_text('{"revision": 7')
        await until(lambda: "the traffic file is not understood" in caplog.text, "the word is read")
        assert await arms(router, 3) == {"canary": 3}
