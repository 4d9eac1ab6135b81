"""Parquet files as one sequence of rows, of which each worker reads its part and nothing else.

The footers say how many rows each row group has. Files in order of name, their row groups in order: that is a
numbering of all rows, the same for every worker, and the row group is the unit that is read.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headrace.storage import NotFound, Store
from headrace.training.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group: its file, relative to the data set's URI, its number in the file, and its rows."""

    path: str
    index: int
    rows: int


@dataclass(frozen=True)
class ParquetRows:
    """The rows of a data set.

    Attributes:
        store: The file, or the folder with the files.
        groups: All row groups in order.
        footers: The `pyarrow.parquet.FileMetaData` of each file.
        schema: The `pyarrow.Schema` of the first file.
        field: Field of the spec that names the data, for messages.
    """

    store: Store
    groups: tuple[RowGroup, ...]
    footers: Mapping[str, Any]
    schema: Any
    field: str

    @classmethod
    def open(cls, uri: str, field: str = "dataset.uri") -> ParquetRows:
        """Read the footers of the file or folder at `uri`; files whose names begin with `_` or `.` are left out.

        Raises:
            ConfigurationError: something is not Parquet, or there are no rows.
            StorageError: it cannot be read.
        """
        store = Store.open(uri)
        if not store.exists():
            raise NotFound(uri, "there is nothing here", f"put a Parquet file or folder there or correct {field}")
        paths = [""]
        if store.is_folder():
            paths = [entry.path for entry in store.list(recursive=True) if _is_data(entry.path, entry.is_folder)]
        groups: list[RowGroup] = []
        footers: dict[str, Any] = {}
        schema = None
        for path in paths:
            with _opened(store, path, field) as file:
                footers[path] = metadata = file.metadata
                schema = schema or file.schema_arrow
                counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            groups += [RowGroup(path, index, count) for index, count in enumerate(counts) if count]
        if not groups:
            raise ConfigurationError(field, f"{uri} has no rows", "store at least one row")
        return cls(store, tuple(groups), footers, schema, field)

    @cached_property
    def starts(self) -> list[int]:
        """Number of the first row of each group, and the number of all rows at the end."""
        return [0, *itertools.accumulate(group.rows for group in self.groups)]

    def __len__(self) -> int:
        return self.starts[-1]

    def digest(self) -> str:
        """Hex digest of the files' names and row groups."""
        return hashlib.sha256(repr(self.groups).encode()).hexdigest()

    def part(self, rank: int, world_size: int) -> tuple[int, int]:
        """First row and end of a worker's part; the parts are disjoint, make up all, and differ by at most one row."""
        return len(self) * rank // world_size, len(self) * (rank + 1) // world_size

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Any:
        """Rows `start` to `stop` as a `pyarrow.Table` with the given columns.

        Raises:
            ConfigurationError: a file lacks a column or has it in another type.
            StorageError: it cannot be read.
        """
        import pyarrow

        tables = [
            self.read_group(index, columns).slice(max(0, start - first), min(stop, last) - max(start, first))
            for index, first, last in self._within(start, stop)
        ]
        try:
            return pyarrow.concat_tables(tables) if tables else self._columns_of(columns).empty_table()
        except pyarrow.ArrowInvalid as error:
            raise ConfigurationError(
                self.field,
                f"the files of {self.store.uri} have different columns or types: {' '.join(str(error).split())[:160]}",
                "store all files with the same columns",
            ) from error

    def read_group(self, index: int, columns: Sequence[str] | None) -> Any:
        """One whole row group as a `pyarrow.Table`; None for all columns. Raises as `read`."""
        group = self.groups[index]
        with _opened(self.store, group.path, self.field, self.footers[group.path]) as file:
            names = set(file.schema_arrow.names)
            if missing := [name for name in columns or () if name not in names]:
                raise ConfigurationError(
                    self.field,
                    f"{self.store.uri_of(group.path)} has no column {', '.join(map(repr, missing))}",
                    "store all files with the same columns",
                )
            return file.read_row_group(group.index, columns=None if columns is None else list(columns))

    def _within(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Groups that have rows between `start` and `stop`: index, first row, end."""
        first = bisect.bisect_right(self.starts, start) - 1
        for index in range(first, len(self.groups)):
            if self.starts[index] >= stop:
                return
            yield index, self.starts[index], self.starts[index + 1]

    def _columns_of(self, columns: Sequence[str]) -> Any:
        import pyarrow

        return pyarrow.schema([self.schema.field(name) for name in columns])


def _is_data(path: str, is_folder: bool) -> bool:
    return not is_folder and not path.rpartition("/")[2].startswith(("_", "."))


@contextmanager
def _opened(store: Store, path: str, field: str, footer: Any = None) -> Iterator[Any]:
    """A `ParquetFile`, with errors of storage and of the format told apart."""
    import pyarrow
    from pyarrow import parquet

    try:
        with (
            store.errors(path),
            parquet.ParquetFile(
                store.path_of(path), filesystem=store.filesystem, metadata=footer, pre_buffer=True
            ) as file,
        ):
            yield file
    except pyarrow.ArrowInvalid as error:
        raise ConfigurationError(
            field,
            f"{store.uri_of(path)} cannot be read as Parquet: {' '.join(str(error).split())[:160]}",
            "store the data as Parquet",
        ) from error
