"""Training data of the classifier: a table of numbers with a class per row, its fixed split, and its order."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.api.trainingjob import Dataset
from headrace.storage import NotFound, Store
from headrace.training.errors import ConfigurationError

logger = logging.getLogger(__name__)

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with their classes.

    Attributes:
        features: Shape (rows, columns).
        labels: Shape (rows,), 0 to classes - 1, each of which occurs.
        columns: Name of each feature.
    """

    features: Features
    labels: Labels
    columns: tuple[str, ...]

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def digest(self) -> str:
        """Hex digest of the data, equal only for equal rows in equal order."""
        hasher = hashlib.sha256(repr((self.columns, self.features.shape)).encode())
        hasher.update(np.ascontiguousarray(self.features).data)
        hasher.update(np.ascontiguousarray(self.labels).data)
        return hasher.hexdigest()


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from and rows to judge by; the latter may be none."""

    train: Table
    test: Table


@dataclass(frozen=True, slots=True)
class Standardization:
    """Zero mean and unit variance per column, as learned from the training rows.

    Attributes:
        mean: Shape (columns,).
        scale: Standard deviation, shape (columns,); 1 where a column is constant.
    """

    mean: Features
    scale: Features

    @classmethod
    def of(cls, features: Features) -> Standardization:
        """Mean and population standard deviation of each column, accumulated in float64."""
        deviation = features.std(axis=0, dtype=np.float64)
        mean = features.mean(axis=0, dtype=np.float64)
        return cls(mean.astype(np.float32), np.where(deviation > 0, deviation, 1.0).astype(np.float32))

    def apply(self, features: Features) -> Features:
        """In float32, as the exported model does it, so that training and serving see the same numbers."""
        return (features - self.mean) / self.scale


def load(dataset: Dataset) -> Table:
    """The data set that the specification names.

    Raises:
        ConfigurationError: it cannot be trained on.
        StorageError: it cannot be read.
    """
    if dataset.uri:
        return _parquet(dataset.uri, dataset.label_column)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Table(digits.data.astype(np.float32), digits.target.astype(np.int64), tuple(digits.feature_names))


def split(table: Table, test_fraction: float, seed: int) -> Split:
    """A stratified split: every class has the same share in both parts. Fixed by `seed`.

    Raises:
        ConfigurationError: a class has too few rows for it.
    """
    if test_fraction == 0:
        return Split(table, Table(table.features[:0], table.labels[:0], table.columns))
    from sklearn.model_selection import train_test_split

    try:
        train, test = train_test_split(
            np.arange(len(table.labels)), test_size=test_fraction, stratify=table.labels, random_state=seed
        )
    except ValueError as error:
        raise ConfigurationError(
            "dataset.testFraction",
            f"{test_fraction} of {len(table.labels)} rows with {table.classes} classes cannot be split: {error}",
            "give each class at least two rows, choose another fraction, or 0 for no test rows",
        ) from error
    return Split(_rows(table, train), _rows(table, test))


def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in one epoch: a permutation that depends on nothing but the arguments."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def shard(batch: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """A worker's part of a global batch; the parts are disjoint, make up the batch, and differ by at most one row."""
    return np.array_split(batch, world_size)[rank]


def _rows(table: Table, indices: NDArray[np.int64]) -> Table:
    return Table(table.features[indices], table.labels[indices], table.columns)


def _parquet(uri: str, label_column: str) -> Table:
    import pyarrow
    from pyarrow import parquet, types

    store = Store.open(uri)
    if not store.exists():
        raise NotFound(uri, "there is nothing here", "put a Parquet file or folder there or correct dataset.uri")
    try:
        with store.errors():
            table = parquet.read_table(store.path_of(), filesystem=store.filesystem)
    except pyarrow.ArrowInvalid as error:
        raise ConfigurationError(
            "dataset.uri", f"{uri} cannot be read as Parquet: {_one_line(error)}", "store the data as Parquet"
        ) from error
    if label_column not in table.column_names:
        raise ConfigurationError(
            "dataset.labelColumn",
            f"{uri} has no column {label_column!r}; it has {', '.join(table.column_names[:8]) or 'none'}",
            "name the column with the class",
        )
    if table.num_rows == 0:
        raise ConfigurationError("dataset.uri", f"{uri} has no rows", "store at least two rows per class")

    def is_numeric(kind: Any) -> bool:
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))

    others = [field for field in table.schema if field.name != label_column]
    columns = [field.name for field in others if is_numeric(field.type)]
    ignored = [field.name for field in others if not is_numeric(field.type)]
    if ignored:
        logger.warning("columns that are not numeric are no features: %s", ", ".join(ignored[:50]))
    if not columns:
        raise ConfigurationError(
            "dataset.uri",
            f"{uri} has no numeric column besides {label_column!r}",
            "store the features as integer, floating-point or boolean columns",
        )
    for name in (label_column, *columns):
        nulls = table.column(name).null_count
        if nulls:
            raise ConfigurationError(
                "dataset.uri", f"column {name!r} of {uri} is null in {nulls} rows", "fill the gaps or drop the rows"
            )
    features = np.empty((table.num_rows, len(columns)), np.float32)
    for index, name in enumerate(columns):
        features[:, index] = table.column(name).to_numpy()
        if not np.isfinite(features[:, index]).all():
            raise ConfigurationError(
                "dataset.uri",
                f"column {name!r} of {uri} has values that no 32-bit float can hold (NaN or infinity)",
                "drop those rows or rescale the column",
            )
    return Table(features, _labels(table, uri, label_column), tuple(columns))


def _labels(table: Any, uri: str, label_column: str) -> Labels:
    from pyarrow import types

    column = table.column(label_column)
    if not (types.is_integer(column.type) or types.is_boolean(column.type)):
        raise ConfigurationError(
            "dataset.labelColumn",
            f"column {label_column!r} of {uri} is of type {column.type}",
            "store the class as an integer, 0 to K-1",
        )
    labels: Labels = column.to_numpy().astype(np.int64)
    present = np.unique(labels)
    if len(present) < 2:
        raise ConfigurationError(
            "dataset.labelColumn",
            f"column {label_column!r} of {uri} has only the class {present[0]}",
            "a classifier needs rows of at least two classes",
        )
    if present[0] != 0 or present[-1] != len(present) - 1:
        shown = ", ".join(map(str, present[:10])) + (", …" if len(present) > 10 else "")
        raise ConfigurationError(
            "dataset.labelColumn",
            f"column {label_column!r} of {uri} has the classes {shown}",
            f"number the {len(present)} classes 0 to {len(present) - 1}",
        )
    return labels


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
