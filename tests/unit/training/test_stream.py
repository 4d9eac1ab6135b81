"""Streaming batches: every row once in an epoch, equal steps on all workers, exact positions, bounded reading ahead."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from headrace.training.parquet import ParquetRows, RowGroup
from headrace.training.stream import Stream


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> ParquetRows:
    """113 rows in three files; `id` counts them."""
    folder = tmp_path_factory.mktemp("data")
    for part, (start, stop) in enumerate([(0, 40), (40, 41), (41, 113)]):
        ids = np.arange(start, stop)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(ids, 2), pa.float32()), 2)
        table = pa.table({"id": ids, "text": [f"row {n}" for n in ids], "vector": vectors})
        parquet.write_table(table, folder / f"{part}.parquet", row_group_size=9)
    return ParquetRows.open(f"file://{folder}")


def streams(rows: ParquetRows, workers: int, **options: Any) -> list[Stream]:
    return [Stream(rows, 10, ["id"], rank=rank, world_size=workers, **options) for rank in range(workers)]


def ids(batches: Sequence[Any]) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_all_workers_take_equal_steps_and_every_row_comes_once_in_an_epoch(
    rows: ParquetRows, workers: int, shuffle: bool
) -> None:
    taken = [ids(list(stream)) for stream in streams(rows, workers, epochs=2, shuffle=shuffle)]
    assert {len(batches) for batches in taken} == {2 * 12}, "12 = ceil(113 / 10)"
    for epoch in range(2):
        seen = [n for batches in taken for batch in batches[epoch * 12 : epoch * 12 + 12] for n in batch]
        assert sorted(seen) == list(range(113))
    assert max(len(batch) for batches in taken for batch in batches) <= -(-10 // workers) + 1


def test_the_order_is_random_by_epoch_and_seed_and_otherwise_that_of_the_rows(rows: ParquetRows) -> None:
    (plain,) = streams(rows, 1, epochs=1, shuffle=False)
    assert list(itertools.chain(*ids(list(plain)))) == list(range(113))
    (one,), (same,), (other,) = (streams(rows, 1, epochs=2, seed=seed) for seed in (1, 1, 2))
    batches = ids(list(one))
    assert batches == ids(list(same))
    assert batches != ids(list(other))
    assert batches[:12] != batches[12:]
    assert batches[0] != sorted(batches[0]), "rows of a row group are shuffled"


def test_a_batch_has_all_columns_with_vectors_as_rows(rows: ParquetRows) -> None:
    batch = next(iter(Stream(rows, 12, epochs=1)))
    assert set(batch) == {"id", "text", "vector"}
    np.testing.assert_array_equal(batch["vector"], np.repeat(batch["id"], 2).reshape(-1, 2))
    assert batch["text"].tolist() == [f"row {n}" for n in batch["id"]]


@given(workers=st.integers(1, 6), steps=st.integers(0, 30), shuffle=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_run_goes_on_with_the_batches_that_it_would_have_got(
    rows: ParquetRows, workers: int, steps: int, shuffle: bool
) -> None:
    for undisturbed, cut, resumed in zip(
        *(streams(rows, workers, epochs=3, shuffle=shuffle) for _ in range(3)), strict=True
    ):
        whole = ids(list(undisturbed))
        first = ids(list(itertools.islice(cut, steps)))
        resumed.load_state_dict(json.loads(json.dumps(cut.state_dict())))
        assert resumed.step == len(first)
        assert first + ids(list(resumed)) == whole


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_other_numbers_of_workers_get_exactly_the_rows_that_nobody_had(
    rows: ParquetRows, lives: list[tuple[int, int]]
) -> None:
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for workers, steps in [*lives, (2, 10_000)]:
        group = streams(rows, workers, epochs=1)
        for stream in group:
            if state is not None:
                stream.load_state_dict(state)
            for batch in itertools.islice(stream, steps):
                seen += batch["id"].tolist()
        assert len({json.dumps(stream.state_dict()) for stream in group}) == 1, "the position is the same on all"
        state = json.loads(json.dumps(group[0].state_dict()))
        if group[0].epoch == 1:
            break
    assert sorted(seen) == list(range(113))


def test_no_more_is_read_ahead_than_was_asked_for(rows: ParquetRows, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = ParquetRows.read_group

    def noted(self: ParquetRows, index: int, columns: Sequence[str] | None) -> Any:
        read.append(index)
        return whole(self, index, columns)

    monkeypatch.setattr(ParquetRows, "read_group", noted)
    iterator = iter(Stream(rows, 3, ["id"], epochs=1, shuffle=False, prefetch=2))
    next(iterator)
    assert len(read) <= 2
    iterator.close()  # type: ignore[attr-defined]
    assert len(read) <= 2


def test_a_position_in_other_data_is_refused(rows: ParquetRows) -> None:
    (stream,) = streams(rows, 1)
    other = ParquetRows(rows.store, (RowGroup("", 0, 5),), rows.footers, rows.schema, "uri")
    with pytest.raises(ValueError, match="the position was saved in"):
        Stream(other, 10).load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="each worker needs a row"):
        Stream(rows, 2, world_size=3)
