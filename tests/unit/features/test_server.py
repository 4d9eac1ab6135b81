"""The feature server over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.api.featureset import FeatureSetSpec, ServerReport
from headrace.api.featureset.served import ServedFeatureSet
from headrace.features.history import fetch
from headrace.features.server import ServerSettings, run_server
from headrace.serving.drain import Leaving, Times
from tests.unit.features.test_online import World, spec, until, write

Answer = tuple[int, Any]


class Client:
    """Asks one server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def ask(self, body: Any) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body)
        async with self._session.post(f"{self.url}/v1/features", data=data) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, str]:
        async with self._session.get(self.url + path) as response:
            return response.status, await response.text()


@asynccontextmanager
async def serving(given: FeatureSetSpec, reports: list[ServerReport] | None = None) -> AsyncIterator[Client]:
    leaving, ports = Leaving(), list[int]()
    served = ServedFeatureSet(namespace="team", name="drivers", spec=given)
    settings = ServerSettings("redis://store", 0, "127.0.0.1", Times(0, 1))
    seen = reports if reports is not None else []
    task = asyncio.create_task(run_server(served, settings, leaving, seen.append, ports.append))
    try:
        await until(lambda: ports or task.done())
        async with aiohttp.ClientSession() as session:
            yield Client(f"http://127.0.0.1:{ports[0]}", session)
    finally:
        leaving.begin()
        await task


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path / "table", monkeypatch)
    write(made.folder, "a.parquet", [(1, 1, 11, 4.0, "Åbo"), (3, 99, 30, 1.0, None)])
    return made


async def test_it_is_ready_with_the_first_rows_and_answers(world: World) -> None:
    given = spec(world.folder)
    reports: list[ServerReport] = []
    async with serving(given, reports) as client:
        await until(lambda: any("has no rows" in report.problem for report in reports))
        assert (await client.get("/readyz"))[0] == 503
        status, body = await client.ask({"entities": {"driver": [1]}})
        assert (status, "first refresh" in body["error"]) == (503, True)
        done = await asyncio.to_thread(world.refresh, given)
        await until(lambda: reports[-1].version != "")
        assert (await client.get("/readyz"))[0] == 200
        status, body = await client.ask({"entities": {"driver": [1, 3, 4]}, "inputs": {"trip": [2.0, None, None]}})
        assert status == 200
        assert body["features"] == ["trips", "city", "share"]
        assert body["rows"] == [[11, "Åbo", 0.5], [None] * 3, [None] * 3]
        assert body["statuses"] == [["Present"] * 3, ["Stale"] * 3, ["Missing"] * 3]
        assert body["hash"] == given.transform().hash
        # Both versions are said, for the operator to compare.
        await until(lambda: reports[-1].source_version != "")
        assert done.online is not None
        assert reports[-1].source_version == done.online.source_version
        assert reports[-1].version == done.online.version
        metrics = (await client.get("/metrics"))[1]
        assert 'headrace_features_values_total{feature_set="drivers",status="Stale"} 3.0' in metrics
        assert 'headrace_features_absent_total{feature="city",feature_set="drivers",status="Missing"} 1.0' in metrics
        # Training gets the transform that is served.
        assert await asyncio.to_thread(fetch, client.url) == given


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        ([1], "expected an object"),
        ({"entities": {"driver": [1]}, "feature": []}, "'feature' is none of entities"),
        ({"entities": [1]}, "entities: expected an object"),
        ({"entities": {"driver": [1.5]}}, "entities.driver: expected Int64, found 1.5"),
        ({"entities": {"driver": [1]}, "features": "trips"}, "features: expected a list"),
        ({"entities": {"driver": [1]}, "inputs": {"trip": 3}}, "inputs.trip: expected a list of 1 values"),
    ],
)
async def test_a_bad_body_is_answered_with_400_and_the_field(world: World, body: Any, words: str) -> None:
    given = spec(world.folder)
    async with serving(given) as client:
        status, answer = await client.ask(body)
        assert (status, words in answer["error"]) == (400, True), answer
        assert (await client.get("/v1/features"))[0] == 405
        assert (await client.get("/v3"))[0] == 404


async def test_while_the_store_is_down_it_says_so_and_then_goes_on(world: World) -> None:
    given = spec(world.folder)
    world.refresh(given)
    reports: list[ServerReport] = []
    async with serving(given, reports) as client:
        await until(lambda: reports and reports[-1].version)
        world.server.connected = False
        status, body = await client.ask({"entities": {"driver": [1]}})
        assert (status, "cannot be used" in body["error"]) == (503, True)
        await until(lambda: "cannot be used" in reports[-1].problem)
        assert (await client.get("/livez"))[0] == 200
        world.server.connected = True
        await until(lambda: reports[-1].version)
        assert (await client.ask({"entities": {"driver": [1]}}))[0] == 200
