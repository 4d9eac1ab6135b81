"""Features as they were: the point-in-time join that training reads.

For each example, at its own time, the latest row of its entity that is not later than that, and not older than the
ttl. Nothing of what was known only afterwards gets in: the join compares times, and the transform looks at one row at a
time.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from headrace.api.featureset import FeatureSetSpec
from headrace.api.meta import parse_duration
from headrace.features.columns import Column, from_arrow, to_arrow
from headrace.features.source import FIELD, codes, concatenated, read_columns
from headrace.features.transform import Evaluator
from headrace.training.errors import ConfigurationError
from headrace.training.parquet import ParquetRows


def point_in_time(
    keys: Sequence[Column], when: Any, source_keys: Sequence[Column], source_when: Any, ttl: int | None = None
) -> Any:
    """For each example the row of the source that was the latest of its entity at its time.

    Sorted by entity and time, that row is where the example would be put in: one binary search for all.

    Args:
        keys: Key columns of n examples.
        when: Shape (n,), times in microseconds.
        source_keys: Key columns of m source rows, of the same types.
        source_when: Shape (m,), times in microseconds.
        ttl: Age in microseconds above which a row is not used; None for any.

    Returns:
        Shape (n,), int64: the row's index, or -1 where there is none. A row at the example's very time is used; of rows
        of one entity and time the one that stands last.
    """
    n, m = len(when), len(source_when)
    if n == 0 or m == 0:
        return np.full(n, -1, np.int64)
    entity = codes([concatenated([a, b]) for a, b in zip(source_keys, keys, strict=True)])
    moments, rank = np.unique(np.concatenate([source_when, when]), return_inverse=True)
    # Entity first, time second, in one number.
    place = entity * len(moments) + rank.reshape(-1)
    order = np.argsort(place[:m], kind="stable")
    position = np.searchsorted(place[:m][order], place[m:], side="right") - 1
    found = np.where(position >= 0, order[np.maximum(position, 0)], -1)
    same = entity[:m][np.maximum(found, 0)] == entity[m:]
    good = (found >= 0) & same
    for column in keys:
        if column.valid is not None:
            good &= column.valid
    if ttl is not None:
        good &= when - source_when[np.maximum(found, 0)] <= ttl
    return np.where(good, found, -1)


def historical_features(
    spec: FeatureSetSpec, examples: Any, timestamp: str = "event_timestamp", features: Sequence[str] | None = None
) -> Any:
    """Examples with the features that they would have been served at their time.

    Args:
        spec: The FeatureSet's.
        examples: A `pyarrow.Table` with the entities' keys, a time, and the request inputs where there are any.
        timestamp: Its column with the time.
        features: Names of features; None for all, in the order of the spec.

    Returns:
        The table with a column for each feature, null where there is none; in the order of the examples.

    Raises:
        ConfigurationError: A column is missing, or the source is no Parquet.
        ColumnError: A column has another type.
        StorageError: The source cannot be read.
    """
    source = _read(spec)
    return join(spec, examples, source, timestamp, features)


def join(
    spec: FeatureSetSpec,
    examples: Any,
    source: Any,
    timestamp: str = "event_timestamp",
    features: Sequence[str] | None = None,
) -> Any:
    """`historical_features` with the source as a `pyarrow.Table`."""
    transform = spec.transform()
    evaluator = Evaluator(transform)
    needed = [*transform.entities, timestamp, *transform.inputs]
    if missing := [name for name in needed if name not in examples.column_names]:
        raise ConfigurationError("examples", f"have no column {missing[0]!r}", f"give a table with {', '.join(needed)}")
    given = {name: from_arrow(name, type_, examples.column(name)) for name, type_ in transform.entities.items()}
    given |= {name: from_arrow(name, type_, examples.column(name)) for name, type_ in transform.inputs.items()}
    when = from_arrow(timestamp, "Timestamp", examples.column(timestamp))
    columns = read_columns(spec, source)
    rows = _usable([columns[name] for name in (*transform.entities, transform.timestamp)], len(source))
    columns = {name: column.take(rows) for name, column in columns.items()}
    ttl = parse_duration(transform.ttl) // timedelta(microseconds=1) if transform.ttl else None
    index = point_in_time(
        [given[name] for name in transform.entities],
        when.values,
        [columns[name] for name in transform.entities],
        columns[transform.timestamp].values,
        ttl,
    )
    if when.valid is not None:
        index = np.where(when.valid, index, -1)
    kept = {name: column.take(index) for name, column in evaluator.kept(columns).items()}
    known = {**kept, **given, transform.timestamp: columns[transform.timestamp].take(index)}
    names = [item.name for item in transform.features] if features is None else list(features)
    found = evaluator.features(known, names)
    types = {item.name: item.type for item in transform.features}
    result = examples
    for name in names:
        array = to_arrow(found[name], types[name])
        if name in result.column_names:
            result = result.set_column(result.column_names.index(name), name, array)
        else:
            result = result.append_column(name, array)
    return result


def fetch(url: str, timeout: float = 30.0) -> FeatureSetSpec:
    """The spec that a FeatureSet's servers serve, for training with it.

    Args:
        url: The status' url, such as `http://drivers-features.demo`.
        timeout: Seconds for the answer.

    Raises:
        OSError: They do not answer.
        ValueError: What answers is no feature server.
    """
    with urllib.request.urlopen(f"{url.rstrip('/')}/v1/metadata", timeout=timeout) as response:
        metadata = json.load(response)
    if not isinstance(metadata, dict) or "spec" not in metadata:
        raise ValueError(f"{url} is no feature server: its /v1/metadata has no spec")
    return FeatureSetSpec.model_validate(metadata["spec"])


def card(spec: FeatureSetSpec, namespace: str, name: str, features: Sequence[str] | None = None) -> dict[str, Any]:
    """What a model card says of the features that a model was trained with: `run.publish(..., features=card(...))`.

    Serving compares it with the FeatureSet as it is then (`headrace.api.featureset.differences`).
    """
    transform = spec.transform()
    used = set(transform.hashes) if features is None else set(features)
    return {
        "featureSet": name,
        "namespace": namespace,
        "hash": transform.hash,
        "features": {feature: hash_ for feature, hash_ in transform.hashes.items() if feature in used},
    }


def _usable(needed: Sequence[Column], rows: int) -> Any:
    good = np.ones(rows, np.bool_)
    for column in needed:
        if column.valid is not None:
            good &= column.valid
    return np.flatnonzero(good)


def _read(spec: FeatureSetSpec) -> Any:
    transform = spec.transform()
    rows = ParquetRows.open(spec.source.uri, FIELD)
    return rows.read(0, len(rows), [*transform.entities, transform.timestamp, *transform.columns])
