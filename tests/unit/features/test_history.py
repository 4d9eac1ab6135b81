"""The point-in-time join: hand-computed tables, no leakage, and the same rows as DuckDB's ASOF JOIN."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from headrace.api.featureset import FeatureSetSpec
from headrace.features.history import join
from headrace.training.errors import ConfigurationError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(hours: float) -> datetime:
    return NOON + timedelta(hours=hours)


def spec(**more: Any) -> FeatureSetSpec:
    return FeatureSetSpec.model_validate(
        {
            "entities": [{"name": "driver", "type": "Int64"}],
            "source": {"uri": "file:///tmp/x", "timestampColumn": "ts"},
            "features": [{"name": "trips", "type": "Int64"}],
        }
        | more
    )


def table(columns: dict[str, list[Any]]) -> pa.Table:
    times = {name: pa.array(values, pa.timestamp("us", "UTC")) for name, values in columns.items() if "ts" in name}
    return pa.table(columns | times)


SOURCE = table(
    {
        "driver": [1, 1, 1, 2, 2, 3],
        "ts": [at(0), at(2), at(4), at(1), at(1), at(9)],
        "trips": [10, 12, 14, 20, 21, 30],
    }
)


def test_each_example_gets_the_latest_row_that_is_not_later() -> None:
    examples = table(
        {
            "driver": [1, 1, 1, 1, 2, 2, 3, 4],
            #      before all, at the very time, between, after all; two rows of one time: the last
            "event_ts": [at(-1), at(2), at(3.5), at(99), at(0.5), at(1), at(8), at(5)],
        }
    )
    joined = join(spec(), examples, SOURCE, "event_ts")
    assert joined.column_names == ["driver", "event_ts", "trips"]
    assert joined["trips"].to_pylist() == [None, 12, 12, 14, None, 21, None, None]


def test_rows_older_than_the_ttl_are_not_used() -> None:
    examples = table({"driver": [1, 1, 1], "event_ts": [at(5), at(5.5), at(6.5)]})
    # 14 became true at 4; an age of exactly the ttl is still good.
    assert join(spec(ttl="90m"), examples, SOURCE, "event_ts")["trips"].to_pylist() == [14, 14, None]


def test_what_becomes_known_later_changes_no_earlier_example() -> None:
    rng = np.random.default_rng(5)
    examples = table({"driver": [1, 2, 3] * 20, "event_ts": [at(float(h)) for h in rng.uniform(0, 10, 60)]})
    before = join(spec(), examples, SOURCE, "event_ts")
    later = table({"driver": [1, 2, 3, 4], "ts": [at(10.5)] * 4, "trips": [-1, -2, -3, -4]})
    assert join(spec(), examples, pa.concat_tables([SOURCE, later]), "event_ts").equals(before)


def test_request_time_features_use_the_example_s_own_inputs() -> None:
    asked = spec(
        requestInputs=[{"name": "km", "type": "Float64"}],
        features=[
            {"name": "trips", "type": "Int64"},
            {"name": "share", "type": "Float64", "expression": "km / trips"},
        ],
    )
    examples = table({"driver": [1, 2], "event_ts": [at(2), at(0)], "km": [6.0, 6.0]})
    assert join(asked, examples, SOURCE, "event_ts")["share"].to_pylist() == [0.5, None]
    with pytest.raises(ConfigurationError, match="'km'"):
        join(asked, examples.drop_columns(["km"]), SOURCE, "event_ts")


@pytest.mark.parametrize("seed", range(4))
def test_the_join_is_duckdb_s_asof_join(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, asked, hours = 3000, 2000, 500
    # Times of one entity differ, since ASOF JOIN does not say which of two equal ones it takes.
    pairs = rng.permutation(40 * hours)[:rows]
    source = pa.table(
        {
            "driver": pa.array(pairs // hours),
            "region": pa.array(np.array(["north", "south"])[(pairs // hours) % 2]),
            "ts": pa.array([at(int(h)) for h in pairs % hours], pa.timestamp("us", "UTC")),
            "trips": pa.array(rng.integers(0, 1000, rows), mask=rng.random(rows) < 0.1),
        }
    )
    examples = pa.table(
        {
            "driver": pa.array(rng.integers(0, 45, asked)),
            "region": pa.array(np.array(["north", "south", "west"])[rng.integers(0, 3, asked)]),
            "event_ts": pa.array([at(float(h)) for h in rng.integers(-10, 520, asked)], pa.timestamp("us", "UTC")),
            "position": pa.array(np.arange(asked)),
        }
    )
    both = spec(
        entities=[{"name": "driver", "type": "Int64"}, {"name": "region", "type": "String"}],
        source={
            "uri": "file:///tmp/x",
            "timestampColumn": "ts",
        },
    )
    connection = duckdb.connect()
    connection.register("source", source)
    connection.register("examples", examples)
    expected = connection.execute(
        "SELECT source.trips FROM examples ASOF LEFT JOIN source ON examples.driver = source.driver AND "
        "examples.region = source.region AND examples.event_ts >= source.ts ORDER BY position"
    ).fetchall()
    joined = join(both, examples, source, "event_ts")
    assert joined["trips"].to_pylist() == [value for (value,) in expected]
