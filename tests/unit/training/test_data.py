"""The order of rows, the split, and what is said about data that cannot be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from headrace.api.trainingjob import Dataset
from headrace.storage import NotFound
from headrace.training.data import Standardization, epoch_order, load, shard, split
from headrace.training.errors import ConfigurationError


def write(path: Path, **columns: Any) -> Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return Dataset(uri=f"file://{path}")


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 100])
def test_the_workers_parts_make_up_the_same_global_batches(world_size: int) -> None:
    order = epoch_order(1437, seed=3, epoch=5)
    assert sorted(order) == list(range(1437))
    for start in range(0, 1437, 64):
        batch = order[start : start + 64]
        parts = [shard(batch, rank, world_size) for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    np.testing.assert_array_equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))
    assert not np.array_equal(epoch_order(50, 1, 2), epoch_order(50, 1, 3))
    assert not np.array_equal(epoch_order(50, 1, 2), epoch_order(50, 2, 2))


def test_digits_are_split_in_equal_shares_and_always_the_same() -> None:
    table = load(Dataset(builtin="Digits"))
    assert table.features.shape == (1797, 64)
    assert table.classes == 10
    np.testing.assert_array_equal(table.features, load_digits().data)
    one, two, other = (split(table, 0.2, seed) for seed in (0, 0, 1))
    assert (len(one.train.labels), len(one.test.labels)) == (1437, 360)
    np.testing.assert_array_equal(one.test.features, two.test.features)
    assert not np.array_equal(one.test.features, other.test.features)
    share = np.bincount(one.test.labels) / np.bincount(table.labels)
    assert np.abs(share - 0.2).max() < 0.01


def test_no_test_rows_where_none_are_wanted() -> None:
    parts = split(load(Dataset(builtin="Digits")), 0.0, 0)
    assert (len(parts.train.labels), len(parts.test.labels)) == (1797, 0)


def test_standardization_is_scikit_learns() -> None:
    features = load(Dataset(builtin="Digits")).features
    expected = StandardScaler().fit_transform(features.astype(np.float64))
    np.testing.assert_allclose(Standardization.of(features).apply(features), expected, atol=1e-5)


def test_parquet_files_of_a_folder_are_one_table(tmp_path: Path) -> None:
    for part in range(2):
        write(
            tmp_path / "data" / f"part-{part}.parquet",
            a=[1.0, 2.0],
            name=["x", "y"],
            label=[0, 1],
            b=[part, part],
            flag=[True, False],
        )
    table = load(Dataset(uri=f"file://{tmp_path}/data"))
    assert table.columns == ("a", "b", "flag")
    assert table.features.tolist() == [[1, 0, 1], [2, 0, 0], [1, 1, 1], [2, 1, 0]]
    assert table.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0, 2.0], "target": [0, 1]}, "no column 'label'; it has a, target"),
        ({"a": [1.0, None], "label": [0, 1]}, "column 'a' of file:///.* is null in 1 rows"),
        ({"a": [1.0, float("nan")], "label": [0, 1]}, "column 'a' .* no 32-bit float can hold"),
        ({"a": ["x", "y"], "label": [0, 1]}, "no numeric column besides 'label'"),
        ({"a": [1.0, 2.0], "label": ["cat", "dog"]}, "is of type string; store the class as an integer"),
        ({"a": [1.0, 2.0], "label": [1, 2]}, "has the classes 1, 2; number the 2 classes 0 to 1"),
        ({"a": [1.0, 2.0], "label": [0, 2]}, "has the classes 0, 2; number the 2 classes 0 to 1"),
        ({"a": [1.0, 2.0], "label": [0, 0]}, "has only the class 0"),
        ({"a": [], "label": []}, "has no rows"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(write(tmp_path / "data.parquet", **columns))


def test_missing_data_and_other_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"file://{tmp_path}/nothing"):
        load(Dataset(uri=f"file://{tmp_path}/nothing"))
    (tmp_path / "data.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match="cannot be read as Parquet"):
        load(Dataset(uri=f"file://{tmp_path}/data.parquet"))


def test_a_class_with_one_row_cannot_be_split(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data.parquet", a=[1.0] * 9, label=[0] * 8 + [1])
    with pytest.raises(ConfigurationError, match=r"dataset.testFraction: 0.2 of 9 rows .* at least two rows"):
        split(load(dataset), 0.2, 0)
