"""Which rows a worker reads, which of them it is judged by, and what is said about data that cannot be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from headrace.api.trainingjob import Dataset, MatrixFactorizationTrainer
from headrace.storage import NotFound
from headrace.training.classic import factorization
from headrace.training.classic.rows import chosen_for_test, load, require_classes
from headrace.training.errors import ConfigurationError
from headrace.training.parquet import ParquetRows


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """103 rows in two files of small row groups; `a` counts them."""
    numbers = np.arange(103)
    for part, rows in enumerate((numbers[:50], numbers[50:])):
        table = pa.table({"a": rows, "flag": rows % 2 == 0, "text": [str(n) for n in rows], "label": rows % 3})
        parquet.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=7)
    (tmp_path / "_SUCCESS").touch()
    return Dataset(uri=f"file://{tmp_path}")


@pytest.mark.parametrize("workers", [1, 2, 3, 20, 103])
def test_parts_make_up_all_rows_and_the_split_is_the_same_for_all_numbers_of_workers(
    dataset: Dataset, workers: int
) -> None:
    parts = [load(dataset, 5, rank, workers) for rank in range(workers)]
    alone = load(dataset, 5, 0, 1)
    for name in ("train", "test"):
        rows = np.concatenate([getattr(part, name).features for part in parts])
        np.testing.assert_array_equal(rows, getattr(alone, name).features)
    assert sorted(np.concatenate([alone.train.features, alone.test.features])[:, 0]) == list(range(103))
    assert alone.columns == ("a", "flag")
    assert {part.digest for part in parts} == {alone.digest}
    sizes = [len(part.train) + len(part.test) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_worker_reads_the_row_groups_of_its_part_and_no_others(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = ParquetRows.read_group

    def noted(rows: ParquetRows, index: int, columns: Sequence[str] | None) -> Any:
        read.append(index)
        return whole(rows, index, columns)

    monkeypatch.setattr(ParquetRows, "read_group", noted)
    load(dataset, 0, 1, 3)
    # Rows 34 to 67: groups 4 to 7 of the first file (28 to 49), 0 to 2 of the second (50 to 70).
    assert read == [4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_test_rows_are_a_share_that_the_seed_fixes(fraction: float) -> None:
    chosen = chosen_for_test(0, 20_000, fraction, 3)
    # Four standard deviations of a binomial share.
    assert abs(chosen.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 20_000)
    np.testing.assert_array_equal(chosen[500:700], chosen_for_test(500, 700, fraction, 3))
    assert not np.array_equal(chosen, chosen_for_test(0, 20_000, fraction, 4))
    assert not chosen_for_test(0, 1000, 0.0, 3).any()


def write(path: Path, **columns: Any) -> Dataset:
    parquet.write_table(pa.table(columns), path)
    return Dataset(uri=f"file://{path}", test_fraction=0)


def test_a_null_is_a_missing_value_where_the_trainer_can_take_one(tmp_path: Path) -> None:
    data = write(tmp_path / "a.parquet", a=[1.0, None, 3.0], b=[True, None, False], label=[0, 1, 0])
    features = load(data, 0, 0, 1, missing=True).train.features
    np.testing.assert_array_equal(features, [[1, 1], [np.nan, np.nan], [3, 0]])
    with pytest.raises(ConfigurationError, match=r"column 'a' of .* is null in 1 rows"):
        load(data, 0, 0, 1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0], "target": [0]}, "no column 'label'; it has a, target"),
        ({"a": ["x"], "label": [0]}, "no numeric column besides 'label'"),
        ({"a": [1.0], "label": ["cat"]}, "is of type string; store classes as integers 0 to K-1"),
        ({"a": [float("inf")], "label": [0]}, "values that are no finite numbers"),
        ({"a": pa.array([], pa.float64()), "label": pa.array([], pa.int64())}, "has no rows"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(write(tmp_path / "data.parquet", **columns), 0, 0, 1)


def test_more_workers_than_rows_missing_files_and_other_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has 2 rows for 3 workers"):
        load(write(tmp_path / "a.parquet", a=[1, 2], label=[0, 1]), 0, 0, 3)
    with pytest.raises(NotFound, match="there is nothing here"):
        load(Dataset(uri=f"file://{tmp_path}/nothing"), 0, 0, 1)
    (tmp_path / "b.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match="cannot be read as Parquet"):
        load(Dataset(uri=f"file://{tmp_path}/b.parquet"), 0, 0, 1)


@pytest.mark.parametrize(
    ("labels", "counts", "message"),
    [
        ([0.5], [1, 1], "the label 0.5 is no class"),
        ([-1.0], [1, 1], "the label -1 is no class"),
        ([0.0], [3], "all rows have the same class"),
        ([0.0, 2.0], [1, 0, 1], "no training row has the class 1 and some have 2"),
    ],
)
def test_labels_that_are_no_classes(labels: list[float], counts: list[int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        require_classes(np.array(labels), np.array(counts))


def trainer(path: Path, **settings: Any) -> MatrixFactorizationTrainer:
    return MatrixFactorizationTrainer(uri=f"file://{path}", test_fraction=0.25, **settings)


def test_every_rating_is_read_once_and_either_learned_from_or_judged_by(tmp_path: Path) -> None:
    numbers = np.arange(40)
    table = pa.table({"user": numbers, "item": numbers * 2, "rating": numbers % 5})
    parquet.write_table(table, tmp_path / "r.parquet", row_group_size=6)
    parts = [factorization.read(trainer(tmp_path / "r.parquet"), rank, 3) for rank in range(3)]
    assert sorted(np.concatenate([each.users for part in parts for each in part[:2]])) == list(range(40))
    assert sum(len(part[1]) for part in parts) == chosen_for_test(0, 40, 0.25, 0).sum()


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"user": [1], "movie": [2], "rating": [3]}, {}, "itemColumn: .* has no column 'item'; it has user, movie"),
        ({"user": ["a"], "item": [2], "rating": [3]}, {}, "userColumn: column 'user' .* string; store integers"),
        ({"user": [1], "item": [None], "rating": [3]}, {}, "itemColumn: column 'item' .* is of type null"),
        ({"user": [1, None], "item": [1, 2], "rating": [3, 3]}, {}, "column 'user' is null in 1 rows"),
        ({"user": [1], "item": [2], "rating": [-1]}, {"objective": "Implicit"}, "negative feedback"),
    ],
)
def test_ratings_that_cannot_be_learned_from(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "r.parquet")
    with pytest.raises(ConfigurationError, match=message):
        factorization.read(trainer(tmp_path / "r.parquet", **settings), 0, 1)
