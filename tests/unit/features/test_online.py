"""Refreshes and readers against an online store: all or nothing, resumed, incremental, true caches, ttl."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fakeredis
import pyarrow as pa
import pytest
from pyarrow import parquet

from headrace.api.featureset import FeatureSetSpec, RefreshReport
from headrace.features import reading
from headrace.features.answer import QuestionError
from headrace.features.cache import RowCache
from headrace.features.online import Keys, OnlineStoreError, State, parse_address
from headrace.features.reading import AsyncFeatureClient, FeatureClient, NotLoaded
from headrace.features.refresh import Overtaken, Refresher

NOW = datetime.now(UTC).replace(microsecond=0)


def spec(folder: Path, **more: Any) -> FeatureSetSpec:
    return FeatureSetSpec.model_validate(
        {
            "entities": [{"name": "driver"}],
            "source": {
                "uri": f"file://{folder}",
                "timestampColumn": "ts",
                "columns": [{"name": "km", "type": "Float64"}],
            },
            "requestInputs": [{"name": "trip", "type": "Float64"}],
            "features": [
                {"name": "trips", "type": "Int64"},
                {"name": "city", "type": "String"},
                {"name": "share", "type": "Float64", "expression": "trip / km"},
            ],
            "ttl": "24h",
        }
        | more
    )


def write(folder: Path, name: str, rows: list[tuple[int | None, float, int | None, float | None, str | None]]) -> None:
    """Rows of driver, age in hours, trips, km, city."""
    drivers, ages, trips, km, city = (list(column) for column in zip(*rows, strict=True))
    table = pa.table(
        {
            "driver": pa.array(drivers, pa.int64()),
            "ts": pa.array([NOW - timedelta(hours=age) for age in ages], pa.timestamp("us", "UTC")),
            "trips": pa.array(trips, pa.int64()),
            "km": pa.array(km, pa.float64()),
            "city": pa.array(city, pa.string()),
        }
    )
    folder.mkdir(exist_ok=True)
    parquet.write_table(table, folder / name)


class World:
    """A table, an online store, and those who use it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.server = fakeredis.FakeServer()
        self.redis = fakeredis.FakeRedis(server=self.server)
        monkeypatch.setattr(reading, "connect", lambda uri: self.redis)
        monkeypatch.setattr(reading, "connect_async", lambda uri: fakeredis.FakeAsyncRedis(server=self.server))

    def keys(self, spec: FeatureSetSpec) -> Keys:
        return Keys("team", "drivers", spec.transform().hash)

    def refresh(self, spec: FeatureSetSpec, **more: Any) -> RefreshReport:
        return Refresher(spec, self.keys(spec), self.redis, **more).run()

    def client(self, spec: FeatureSetSpec) -> FeatureClient:
        return FeatureClient(spec, "team", "drivers", "redis://store")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path / "table", monkeypatch)
    write(
        made.folder,
        "a.parquet",
        [
            (1, 3, 10, 2.0, "Oslo"),
            (1, 1, 11, 4.0, "Åbo"),
            (2, 2, None, 8.0, ""),
            (3, 99, 30, 1.0, None),
            (None, 0, 1, 1.0, "x"),
        ],
    )
    return made


def test_the_latest_row_of_each_entity_is_read_with_its_statuses(world: World) -> None:
    given = spec(world.folder)
    report = world.refresh(given)
    assert (report.mode, report.total) == ("Full", 3)
    answer = world.client(given).get({"driver": [1, 2, 3, 4]}, {"trip": [2.0, 2.0, 2.0, 2.0]})
    assert answer.features == ("trips", "city", "share")
    assert [list(row) for row in answer.rows] == [[11, "Åbo", 0.5], [None, "", 0.25], [None] * 3, [None] * 3]
    assert [list(row) for row in answer.statuses] == [
        ["Present"] * 3,
        ["Missing", "Present", "Present"],
        ["Stale"] * 3,
        ["Missing"] * 3,
    ]
    assert answer.event_timestamps == [NOW - timedelta(hours=hours) for hours in (1, 2, 99)] + [None]
    assert answer.counts == {"Present": 5, "Missing": 4, "Stale": 3}


def test_features_come_in_the_order_that_is_asked_for(world: World) -> None:
    given = spec(world.folder)
    world.refresh(given)
    client = world.client(given)
    answer = client.get({"driver": [1]}, {"trip": [4.0]}, ["share", "city"])
    assert [list(row) for row in answer.rows] == [[1.0, "Åbo"]]
    assert client.get({"driver": [1]}, features=["city"]).rows == [("Åbo",)]
    assert client.get({"driver": [1]}).column("share") == [None]


@pytest.mark.parametrize(
    ("entities", "inputs", "features", "words"),
    [
        ({"driver": ["1"]}, {}, None, "entities.driver: expected Int64, found '1'"),
        ({"driver": [True]}, {}, None, "entities.driver: expected Int64"),
        ({"rider": [1]}, {}, None, "entities: expected driver, found rider"),
        ({"driver": []}, {}, None, "entities.driver: expected a list"),
        ({"driver": [1]}, {"trip": ["far"]}, None, "inputs.trip: expected Float64, found str 'far'"),
        ({"driver": [1]}, {"trip": [1.0, 2.0]}, None, "inputs.trip: expected a list of 1 values"),
        ({"driver": [1]}, {"km": [1.0]}, None, "inputs: 'km' is no input"),
        ({"driver": [1]}, {}, ["tips"], "features: 'tips' is none of trips"),
    ],
)
def test_a_wrong_question_is_refused_with_the_field(
    world: World, entities: Any, inputs: Any, features: Any, words: str
) -> None:
    given = spec(world.folder)
    world.refresh(given)
    with pytest.raises(QuestionError) as error:
        world.client(given).get(entities, inputs, features)
    assert words in str(error.value)


def test_before_the_first_refresh_readers_are_told_so(world: World) -> None:
    with pytest.raises(NotLoaded, match="FeatureSet team/drivers"):
        world.client(spec(world.folder)).get({"driver": [1]})


def test_nothing_is_done_while_the_source_stays_as_it_was(world: World) -> None:
    given = spec(world.folder)
    first = world.refresh(given)
    assert world.refresh(given).mode == "Unchanged"
    # Rows that are gone are noticed, though the source is the same.
    assert first.online is not None
    world.redis.delete(world.keys(given).rows(first.online.version.partition(".")[0]))
    assert world.refresh(given).mode == "Full"
    assert world.client(given).get({"driver": [1]}).rows[0][0] == 11


def test_added_files_are_an_increment_and_older_rows_in_them_change_nothing(world: World) -> None:
    given = spec(world.folder)
    before = world.refresh(given)
    write(world.folder, "b.parquet", [(1, 2, 99, 1.0, "old"), (2, 1, 21, 1.0, "new"), (7, 1, 70, 1.0, "first")])
    after = world.refresh(given)
    assert before.online is not None
    assert after.online is not None
    assert (after.mode, after.total, after.online.version) == ("Incremental", 4, before.online.version[:-1] + "1")
    assert world.client(given).get({"driver": [1, 2, 7]}, features=["trips"]).rows == [(11,), (21,), (70,)]


def test_a_changed_file_is_a_full_refresh(world: World) -> None:
    given = spec(world.folder)
    world.refresh(given)
    write(world.folder, "a.parquet", [(1, 1, 5, 1.0, "x")])
    assert world.refresh(given).mode == "Full"
    assert world.client(given).get({"driver": [1, 2]}, features=["trips"]).rows == [(5,), (None,)]


class Killed(BaseException):
    """Whatever ends a process."""


def killer(at: int) -> Callable[[RefreshReport], None]:
    """Ends a refresh when so many rows are written."""

    def report(said: RefreshReport) -> None:
        if said.phase == "Writing" and said.done >= at:
            raise Killed

    return report


def test_a_refresh_that_is_killed_midway_changes_nothing_and_the_next_goes_on(world: World) -> None:
    given = spec(world.folder)
    world.refresh(given)
    write(world.folder, "a.parquet", [(driver, 1, driver * 2, 1.0, "x") for driver in range(1, 101)])
    with pytest.raises(Killed):
        world.refresh(given, report=killer(60), chunk=10)
    client = world.client(given)
    assert client.get({"driver": [1, 50]}, features=["trips"]).rows == [(11,), (None,)]
    seen: list[RefreshReport] = []
    report = world.refresh(given, report=seen.append, chunk=10)
    assert next(item.done for item in seen if item.phase == "Writing") == 60
    assert (report.mode, report.total) == ("Full", 100)
    assert client.get({"driver": [1, 50, 100]}, features=["trips"]).rows == [(2,), (100,), (200,)]
    # Nothing is left of the version before, nor of the way there.
    left = {key.decode().rpartition(":")[0].rpartition(":")[2] for key in world.redis.keys("*progress*")}
    assert left == set()
    assert len(world.redis.keys("*rows*")) == 1


def test_what_a_killed_refresh_wrote_goes_when_the_source_has_moved_on(world: World) -> None:
    given = spec(world.folder)
    world.refresh(given)
    write(world.folder, "a.parquet", [(driver, 1, 1, 1.0, "x") for driver in range(1, 41)])
    with pytest.raises(Killed):
        world.refresh(given, report=killer(20), chunk=10)
    write(world.folder, "a.parquet", [(driver, 1, 2, 1.0, "y") for driver in range(1, 31)])
    assert world.refresh(given).total == 30
    assert len(world.redis.keys("*rows*")) == 1


def test_of_two_refreshes_at_once_the_slower_changes_nothing(world: World) -> None:
    given = spec(world.folder)
    world.refresh(given)
    write(world.folder, "a.parquet", [(1, 1, 100, 1.0, "slow")])

    def other(said: RefreshReport) -> None:
        if said.phase == "Writing" and said.done == 1:
            write(world.folder, "c.parquet", [(1, 0, 200, 1.0, "fast")])
            world.refresh(given)

    with pytest.raises(Overtaken):
        world.refresh(given, report=other)
    assert world.client(given).get({"driver": [1]}, features=["trips"]).rows == [(200,)]


def test_another_transform_lies_beside_and_goes_when_nobody_serves_it(world: World) -> None:
    old = spec(world.folder)
    new = spec(
        world.folder,
        features=[{"name": "double", "type": "Int64", "expression": "trips * 2"}],
        source={
            "uri": f"file://{world.folder}",
            "timestampColumn": "ts",
            "columns": [{"name": "trips", "type": "Int64"}],
        },
    )
    world.refresh(old)
    Refresher(new, world.keys(new), world.redis).run(keep=[old.transform().hash])
    assert world.client(old).get({"driver": [1]}, features=["trips"]).rows == [(11,)]
    assert world.client(new).get({"driver": [1]}).rows == [(22,)]
    Refresher(new, world.keys(new), world.redis).run()
    with pytest.raises(NotLoaded):
        world.client(old).get({"driver": [1]})


def test_a_reader_between_two_versions_reads_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = spec(world.folder)
    world.refresh(given)
    client = world.client(given)
    assert client.get({"driver": [1]}, features=["trips"]).rows == [(11,)]
    write(world.folder, "a.parquet", [(1, 1, 5, 1.0, "x"), (2, 1, 6, 1.0, "x")])
    world.refresh(given)
    # It remembers the version before, whose rows are removed: it finds none of them, and sees that it must look again.
    assert client.get({"driver": [1, 2]}, features=["trips"]).rows == [(5,), (6,)]


async def test_the_cache_follows_what_refreshes_change(world: World) -> None:
    given = spec(world.folder)
    world.refresh(given)
    client = AsyncFeatureClient(given, "team", "drivers", "redis://store", max_entities=100)
    listening = asyncio.create_task(client.listen())
    try:
        await until(lambda: client.cache._trusted)
        for _ in range(2):
            assert (await client.get({"driver": [1, 2]}, features=["trips"])).rows == [(11,), (None,)]
        assert (client.cache.hits, client.cache.misses) == (2, 2)
        write(world.folder, "b.parquet", [(2, 1, 21, 1.0, "new")])
        await asyncio.to_thread(world.refresh, given)
        await until(lambda: len(client.cache) == 1)  # only the row that changed was dropped
        assert (await client.get({"driver": [1, 2]}, features=["trips"])).rows == [(11,), (21,)]
        write(world.folder, "a.parquet", [(1, 1, 1, 1.0, "x")])
        await asyncio.to_thread(world.refresh, given)
        await until(lambda: len(client.cache) == 0)
        assert (await client.get({"driver": [1]}, features=["trips"])).rows == [(1,)]
    finally:
        listening.cancel()
        await client.close()


async def test_a_server_begins_with_the_rows_that_are_asked_for_most(world: World) -> None:
    given = spec(world.folder)
    world.refresh(given)
    client = AsyncFeatureClient(given, "team", "drivers", "redis://store", max_entities=1)
    await client.count({b"1": 5, b"2": 9}, keep=10)
    client.cache.trust(True)
    assert await client.warm() == 1
    assert list(client.cache.find([b"1", b"2"])) == [b"2"]
    await client.close()


def test_the_cache_is_bounded_and_answers_nothing_that_it_cannot_trust() -> None:
    cache = RowCache(2)
    cache.put(b"v.0", {b"1": (0, ())})
    assert cache.find([b"1"]) == {}
    cache.trust(True)
    cache.put(b"v.0", {b"1": (0, ()), b"2": (0, ())})
    cache.find([b"1"])
    cache.put(b"v.0", {b"3": None})
    assert set(cache.find([b"1", b"2", b"3"])) == {b"1", b"3"}  # the longest unused went
    cache.put(b"w.0", {b"4": None})  # of another version: came too late
    assert cache.find([b"4"]) == {}
    cache.apply(b'{"current": "v.2", "entities": ["1"]}')  # v.1 was missed
    assert len(cache) == 0
    cache.trust(False)
    assert not cache.trusted


@pytest.mark.parametrize(
    ("uri", "mode", "hosts", "more"),
    [
        ("redis://store", "single", (("store", 6379),), {"database": 0}),
        (
            "rediss://me:p%40ss@store:7000/3",
            "single",
            (("store", 7000),),
            {"database": 3, "tls": True, "password": "p@ss"},
        ),
        ("redis+sentinel://:pw@a,b:1/mine/2", "sentinel", (("a", 26379), ("b", 1)), {"master": "mine", "database": 2}),
        ("redis+cluster://a:1,b:2", "cluster", (("a", 1), ("b", 2)), {}),
    ],
)
def test_addresses(uri: str, mode: str, hosts: Any, more: dict[str, Any]) -> None:
    address = parse_address(uri)
    assert (address.mode, address.hosts) == (mode, hosts)
    assert {name: getattr(address, name) for name in more} == more


@pytest.mark.parametrize(
    "uri", ["http://store", "redis+sentinel://a", "redis://", "redis://store/x", "redis://store:p"]
)
def test_what_is_no_address_is_refused_with_what_would_be_one(uri: str) -> None:
    with pytest.raises(OnlineStoreError, match=r"write (redis|the number)"):
        parse_address(uri)


def test_a_state_that_cannot_be_read_is_none() -> None:
    assert State.read(b"{") is None
    assert State.read(None) is None


async def until(holds: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
