"""Columns of values that may be null, and their way from and to Arrow and plain Python values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from headrace.api.featureset.transform import WIDENED

DTYPES: dict[str, Any] = {
    "Bool": np.dtype(np.bool_),
    "Int32": np.dtype("<i4"),
    "Int64": np.dtype("<i8"),
    "Float32": np.dtype("<f4"),
    "Float64": np.dtype("<f8"),
    "String": np.dtype(object),
    "Timestamp": np.dtype("<i8"),
}
"""How values of a type are held; a Timestamp is microseconds since 1970 in UTC."""
_FILL: dict[str, Any] = {"Bool": False, "String": ""}


class ColumnError(ValueError):
    """Values that are not of the type that their column declares; names the column, what was found, and the remedy."""


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one type.

    Attributes:
        values: Shape (rows,). Where a row is null there is any value.
        valid: Shape (rows,), False where a row is null; None where no row is.
    """

    values: Any
    valid: Any = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Any) -> Column:
        """The rows at these indices; -1 gives null."""
        if len(self.values) == 0:
            return Column(np.zeros(len(rows), self.values.dtype), np.zeros(len(rows), np.bool_))
        valid = rows >= 0
        if self.valid is not None:
            valid &= self.valid[rows]
        return Column(self.values[rows], None if valid.all() else valid)


def widened(column: Column, type_: str) -> Column:
    """A column of a declared type as expressions compute with it."""
    target = DTYPES[WIDENED[type_]]
    return column if column.values.dtype == target else Column(column.values.astype(target), column.valid)


def narrowed(column: Column, type_: str) -> Column:
    """What an expression gave, in the declared type of its feature."""
    target = DTYPES[type_]
    if column.values.dtype == target:
        return column
    with np.errstate(over="ignore", invalid="ignore"):
        return Column(column.values.astype(target), column.valid)


def from_values(name: str, type_: str, values: Sequence[Any]) -> Column:
    """Plain values, None for null: bool, int, float, str; times as RFC 3339 text, datetime or seconds since 1970.

    Raises:
        ColumnError: One is of another type.
    """
    nulls = [value is None for value in values]
    converted = [_FILL.get(type_, 0) if value is None else _plain(name, type_, value) for value in values]
    try:
        made = np.array(converted, DTYPES[type_])
    except (OverflowError, ValueError, TypeError) as error:
        raise ColumnError(f"{name}: a value does not fit in {type_}: {error}") from error
    return Column(made, ~np.array(nulls) if any(nulls) else None)


def _plain(name: str, type_: str, value: Any) -> Any:
    match type_:
        case "Bool" if isinstance(value, bool):
            return value
        case "Int32" | "Int64" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "Float32" | "Float64" if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        case "String" if isinstance(value, str):
            return value
        case "Timestamp":
            return micros(name, value)
    raise ColumnError(f"{name}: expected {type_}, found {type(value).__name__} {value!r}")


def micros(name: str, value: Any) -> int:
    """A moment as microseconds since 1970 in UTC.

    Raises:
        ColumnError: It is no RFC 3339 text, datetime or number of seconds.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise ColumnError(f"{name}: {value!r} is no time: write it like 2026-01-31T12:00:00Z") from error
    if isinstance(value, datetime):
        from datetime import UTC

        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return round(aware.timestamp() * 1_000_000)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(value * 1_000_000)
    raise ColumnError(f"{name}: expected a time such as 2026-01-31T12:00:00Z, found {type(value).__name__} {value!r}")


def to_values(column: Column) -> list[Any]:
    """Plain values, None for null; Timestamps as microseconds."""
    values: list[Any] = column.values.tolist()
    if column.valid is None:
        return values
    return [value if good else None for value, good in zip(values, column.valid.tolist(), strict=True)]


def arrow_type(type_: str) -> Any:
    """The Arrow type of a declared type."""
    import pyarrow as pa

    return {
        "Bool": pa.bool_(),
        "Int32": pa.int32(),
        "Int64": pa.int64(),
        "Float32": pa.float32(),
        "Float64": pa.float64(),
        "String": pa.string(),
        "Timestamp": pa.timestamp("us", tz="UTC"),
    }[type_]


def from_arrow(name: str, type_: str, array: Any) -> Column:
    """An Arrow array or chunked array, converted to the declared type where that loses nothing.

    Raises:
        ColumnError: It cannot be converted.
    """
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    wanted = arrow_type(type_)
    try:
        if type_ == "Timestamp":
            # A time without a zone is UTC.
            array = array.cast(pa.timestamp("us", tz=getattr(array.type, "tz", None)), safe=False).cast(pa.int64())
        else:
            if type_ == "Int32" and pa.types.is_integer(array.type):
                array = array.cast(pa.int64())
            # From Float64 to Float32 is what its declaration asks for; all else must lose nothing.
            array = array.cast(wanted, safe=type_ != "Float32")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ColumnError(
            f"column {name}: expected {type_}, found {array.type} ({' '.join(str(error).split())[:160]}): correct the "
            "declared type, or the table"
        ) from error
    valid = None
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        array = array.fill_null(pa.scalar(_FILL.get(type_, 0), array.type))
    values = array.to_numpy(zero_copy_only=False)
    return Column(np.ascontiguousarray(values, DTYPES[type_]), valid)


def to_arrow(column: Column, type_: str) -> Any:
    """An Arrow array of the declared type."""
    import pyarrow as pa

    mask = None if column.valid is None else ~column.valid
    if type_ == "Timestamp":
        return pa.array(column.values, pa.int64(), mask=mask).cast(pa.timestamp("us", tz="UTC"))
    return pa.array(column.values, arrow_type(type_), mask=mask)
