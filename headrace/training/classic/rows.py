"""A worker's part of a table of numbers: what it learns from, and what the model is judged by.

All rows are numbered; a worker has a contiguous part of them, and whether a row is a test row depends on its number
and the seed alone. So the split is the same for every number of workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.api.trainingjob import Dataset
from headrace.training.errors import ConfigurationError
from headrace.training.parquet import ParquetRows

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows with their labels.

    Attributes:
        features: Shape (rows, columns).
        labels: Shape (rows,): class or number.
    """

    features: Floats
    labels: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker has.

    Attributes:
        train: Rows to learn from.
        test: Rows to judge by.
        columns: Name of each feature.
        total: Rows of all workers.
        digest: Of the data set, the same on all workers.
    """

    train: Rows
    test: Rows
    columns: tuple[str, ...]
    total: int
    digest: str


def chosen_for_test(start: int, stop: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which of the rows numbered `start` to `stop` are test rows: a hash of number and seed (splitmix64), compared.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    with np.errstate(over="ignore"):
        state = np.arange(start, stop, dtype=np.uint64) + np.uint64(1)
        state = (state + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    chosen: NDArray[np.bool_] = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction
    return chosen


def load(dataset: Dataset, seed: int, rank: int, world_size: int, *, missing: bool = False) -> Part:
    """The part of one worker.

    Args:
        dataset: What to read.
        seed: Fixes the split.
        rank: Which worker.
        world_size: Of how many.
        missing: Whether a feature may be missing; it is NaN then.

    Raises:
        ConfigurationError: it cannot be trained on.
        StorageError: it cannot be read.
    """
    if dataset.uri:
        return _parquet(dataset, dataset.uri, seed, rank, world_size, missing)
    from sklearn.datasets import load_digits

    digits = load_digits()
    total = len(digits.target)
    start, stop = total * rank // world_size, total * (rank + 1) // world_size
    rows = Rows(digits.data[start:stop].astype(np.float32), digits.target[start:stop].astype(np.float64))
    names = tuple(digits.feature_names)
    return _split(rows, dataset.test_fraction, seed, start, names, total, "digits")


def require_classes(labels: NDArray[np.float64], counts: NDArray[np.int64], field: str = "dataset.labelColumn") -> None:
    """Check that the classes are 0 to K-1 and each occurs.

    Args:
        labels: Of this worker.
        counts: Rows of each class over all workers, up to the greatest class.
        field: For the message.

    Raises:
        ConfigurationError: they are not.
    """
    if len(labels) and (np.any(labels != np.floor(labels)) or labels.min() < 0):
        wrong = labels[(labels != np.floor(labels)) | (labels < 0)][0]
        raise ConfigurationError(field, f"the label {wrong:g} is no class", "number the classes 0 to K-1")
    if len(counts) < 2:
        raise ConfigurationError(
            field, "all rows have the same class", "a classifier needs rows of at least two classes"
        )
    if gaps := [str(label) for label in np.flatnonzero(counts == 0)[:10]]:
        raise ConfigurationError(
            field,
            f"no training row has the class {', '.join(gaps)} and some have {len(counts) - 1}",
            "number the classes without gaps, or choose another seed where a class is very rare",
        )


def fingerprint(settings: dict[str, Any], part: Part) -> str:
    """Of all that a checkpoint depends on: the trainer's settings and the data, wherever it lies."""
    dataset = {key: value for key, value in settings["dataset"].items() if key != "uri"}
    text = json.dumps([settings | {"dataset": dataset}, part.digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _split(
    rows: Rows, fraction: float, seed: int, start: int, columns: tuple[str, ...], total: int, digest: str
) -> Part:
    chosen = chosen_for_test(start, start + len(rows), fraction, seed)
    train = Rows(rows.features[~chosen], rows.labels[~chosen])
    return Part(train, Rows(rows.features[chosen], rows.labels[chosen]), columns, total, digest)


def _parquet(dataset: Dataset, uri: str, seed: int, rank: int, world_size: int, missing: bool) -> Part:
    from pyarrow import types

    rows = ParquetRows.open(uri)
    label = dataset.label_column
    if label not in rows.schema.names:
        raise ConfigurationError(
            "dataset.labelColumn",
            f"{uri} has no column {label!r}; it has {', '.join(rows.schema.names[:8]) or 'none'}",
            "name the column with the label",
        )

    def is_numeric(kind: Any) -> bool:
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))

    columns = [field.name for field in rows.schema if field.name != label and is_numeric(field.type)]
    ignored = [field.name for field in rows.schema if field.name != label and not is_numeric(field.type)]
    if ignored and rank == 0:
        logger.warning("columns that are not numeric are no features: %s", ", ".join(ignored[:50]))
    if not columns:
        raise ConfigurationError(
            "dataset.uri",
            f"{uri} has no numeric column besides {label!r}",
            "store the features as integer, floating-point or boolean columns",
        )
    if not is_numeric(rows.schema.field(label).type):
        raise ConfigurationError(
            "dataset.labelColumn",
            f"column {label!r} of {uri} is of type {rows.schema.field(label).type}",
            "store classes as integers 0 to K-1, and other labels as numbers",
        )
    if len(rows) < world_size:
        raise ConfigurationError("dataset.uri", f"{uri} has {len(rows)} rows for {world_size} workers", "ask for fewer")
    start, stop = rows.part(rank, world_size)
    table = rows.read(start, stop, [*columns, label])
    features = np.empty((stop - start, len(columns)), np.float32)
    for index, name in enumerate(columns):
        features[:, index] = _numbers(table, name, uri, missing)
    labels = _numbers(table, label, uri, missing=False).astype(np.float64)
    return _split(Rows(features, labels), dataset.test_fraction, seed, start, tuple(columns), len(rows), rows.digest())


def _numbers(table: Any, name: str, uri: str, missing: bool) -> NDArray[Any]:
    column = table.column(name)
    if column.null_count and not missing:
        raise ConfigurationError(
            "dataset.uri",
            f"column {name!r} of {uri} is null in {column.null_count} rows of this worker",
            "fill the gaps or drop the rows",
        )
    numbers: NDArray[Any] = column.to_numpy()
    numbers = numbers.astype(np.float32 if missing else np.float64)
    if np.isinf(numbers).any() or (not missing and np.isnan(numbers).any()):
        raise ConfigurationError(
            "dataset.uri", f"column {name!r} of {uri} has values that are no finite numbers", "drop those rows"
        )
    return numbers
