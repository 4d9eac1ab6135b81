"""The source table: which version of it there is, and its latest row per entity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyarrow import fs

from headrace.api.featureset import FeatureSetSpec
from headrace.features.columns import Column, from_arrow
from headrace.features.transform import Evaluator
from headrace.storage import NotFound, Store
from headrace.training.parquet import ParquetRows

FIELD = "spec.source.uri"
COMPACT_ROWS = 500_000
"""Rows gathered before all but the latest of each entity are dropped."""


def snapshot(uri: str) -> dict[str, str]:
    """Files of a table by path, each with its size and time: what changes when the table does.

    Raises:
        NotFound: There is none.
        StorageError: It cannot be listed.
    """
    store = Store.open(uri)
    with store.errors():
        path = store.path_of()
        info = store.filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            store.require_bucket()
            raise NotFound(uri, "there is nothing here", f"put Parquet files there or correct {FIELD}")
        found = (
            [info]
            if info.type == fs.FileType.File
            else store.filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        )
    files = {
        item.path[len(path) :].lstrip("/"): f"{item.size}-{item.mtime_ns or 0}"
        for item in found
        if item.type == fs.FileType.File
        and not any(part[:1] in "._" for part in item.path[len(path) :].split("/") if part)
    }
    if not files:
        raise NotFound(uri, "the folder has no files", f"put Parquet files there or correct {FIELD}")
    return dict(sorted(files.items()))


def version_of(files: Mapping[str, str]) -> str:
    """Name of a table's version: 16 hexadecimal digits."""
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]


def read_columns(spec: FeatureSetSpec, table: Any) -> dict[str, Column]:
    """Keys, timestamp and columns of an Arrow table, in their declared types.

    Raises:
        ColumnError: A column has another type.
    """
    transform = spec.transform()
    declared = {**transform.entities, transform.timestamp: "Timestamp", **transform.columns}
    return {name: from_arrow(name, type_, table.column(name)) for name, type_ in declared.items()}


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest row of each entity, in order of key.

    Attributes:
        keys: The key columns.
        when: Shape (entities,), microseconds.
        kept: What the online store keeps.
        skipped: Rows without a key or a time, which are left out.
    """

    keys: Sequence[Column]
    when: Any
    kept: Mapping[str, Column]
    skipped: int

    def __len__(self) -> int:
        return len(self.when)


def latest(
    spec: FeatureSetSpec, paths: Collection[str] | None = None, progress: Callable[[int], None] = lambda rows: None
) -> Latest:
    """Read the table.

    Args:
        spec: The FeatureSet's.
        paths: Files to read; None for all.
        progress: Told how many rows were read.

    Raises:
        ConfigurationError: A file is no Parquet or lacks a column.
        ColumnError: A column has another type.
        StorageError: The table cannot be read.
    """
    evaluator = Evaluator(spec.transform())
    keys = list(spec.transform().entities)
    gathered: list[tuple[list[Column], Any, dict[str, Column]]] = []
    rows = skipped = held = 0
    for table in _tables(spec, paths):
        columns = read_columns(spec, table)
        rows += len(table)
        columns, dropped = _whole(columns, [*keys, spec.source.timestamp_column])
        skipped += dropped
        gathered.append(
            ([columns[key] for key in keys], columns[spec.source.timestamp_column].values, evaluator.kept(columns))
        )
        held += len(table)
        progress(rows)
        if held > COMPACT_ROWS and held > 2 * len(gathered[0][1]):
            gathered = [_compact(gathered)]
            held = 0
    found_keys, when, kept = _compact(gathered)
    return Latest(found_keys, when, kept, skipped)


def codes(columns: Sequence[Column]) -> Any:
    """A number per distinct key, in the order of first appearance: shape (rows,), int64."""
    import pyarrow as pa

    found = None
    for column in columns:
        encoded = pa.array(column.values).dictionary_encode()
        index = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        if found is None:
            found = index
        else:
            found = pa.array(found * max(1, len(encoded.dictionary)) + index).dictionary_encode().indices
            found = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def concatenated(columns: Sequence[Column]) -> Column:
    """Columns one after the other."""
    values = np.concatenate([column.values for column in columns])
    if all(column.valid is None for column in columns):
        return Column(values)
    masks = [np.ones(len(column), np.bool_) if column.valid is None else column.valid for column in columns]
    return Column(values, np.concatenate(masks))


def _tables(spec: FeatureSetSpec, paths: Collection[str] | None) -> Iterator[Any]:
    transform = spec.transform()
    names = [*transform.entities, transform.timestamp, *transform.columns]
    rows = ParquetRows.open(spec.source.uri, FIELD)
    for index, group in enumerate(rows.groups):
        if paths is None or group.path in paths:
            yield rows.read_group(index, names)


def _whole(columns: dict[str, Column], needed: Sequence[str]) -> tuple[dict[str, Column], int]:
    """Rows that have a key and a time, and how many have not."""
    masks = [columns[name].valid for name in needed if columns[name].valid is not None]
    if not masks:
        return columns, 0
    rows = np.flatnonzero(np.logical_and.reduce(masks))
    return {name: column.take(rows) for name, column in columns.items()}, len(masks[0]) - len(rows)


def _compact(
    parts: Sequence[tuple[list[Column], Any, dict[str, Column]]],
) -> tuple[list[Column], Any, dict[str, Column]]:
    """The latest row of each key; of rows of the same time the one that stands last."""
    keys = [concatenated([part[0][index] for part in parts]) for index in range(len(parts[0][0]))]
    when = np.concatenate([part[1] for part in parts])
    kept = {name: concatenated([part[2][name] for part in parts]) for name in parts[0][2]}
    number = codes(keys)
    order = np.lexsort((np.arange(len(when)), when, number))
    grouped = number[order]
    last = order[np.append(grouped[1:] != grouped[:-1], True)] if len(order) else order
    # In order of key, so that a refresh that is begun again writes the same rows in the same order.
    last = last[np.lexsort([key.values[last] for key in reversed(keys)])]
    return [key.take(last) for key in keys], when[last], {name: column.take(last) for name, column in kept.items()}
