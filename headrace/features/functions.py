"""The functions of the expression language, each on whole columns: one row is a column of length 1.

`headrace.api.featureset.expression` says what each takes and gives; this module has one implementation for each, which
training, refreshes and requests share. Each works row by row, on contiguous arrays, so that a row's result is the same
bits whatever stands beside it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from headrace.features.columns import Column

Implementation = Callable[[Sequence[Column]], Column]
EARTH_RADIUS_KM = 6371.0088
"""Mean radius of the earth (IUGG, 1980)."""
_DAY, _HOUR = 86_400_000_000, 3_600_000_000
"""Microseconds."""


def both(columns: Sequence[Column]) -> Any:
    """Where all are known; None where none is null."""
    masks = [column.valid for column in columns if column.valid is not None]
    if not masks:
        return None
    found = masks[0]
    for mask in masks[1:]:
        found = found & mask
    return found


def _strict(compute: Callable[..., Any]) -> Implementation:
    """A function of values; null where any argument is."""

    def implementation(columns: Sequence[Column]) -> Column:
        return Column(compute(*(column.values for column in columns)), both(columns))

    return implementation


def _common(columns: Sequence[Column]) -> list[Any]:
    """Values in one type: Float64 where Int64 and Float64 are mixed."""
    values = [column.values for column in columns]
    if len({item.dtype for item in values}) > 1:
        return [item.astype("<f8") for item in values]
    return values


def _numbers(compute: Callable[..., Any]) -> Implementation:
    """A function of numbers in one type."""

    def implementation(columns: Sequence[Column]) -> Column:
        return Column(compute(*_common(columns)), both(columns))

    return implementation


def _reals(compute: Callable[..., Any]) -> Implementation:
    """A function of Float64."""

    def implementation(columns: Sequence[Column]) -> Column:
        values = [np.ascontiguousarray(column.values, "<f8") for column in columns]
        return Column(compute(*values), both(columns))

    return implementation


def _whole(compute: Callable[[Any, Any], Any]) -> Implementation:
    """`//` or `%`: null where integers are divided by zero."""

    def implementation(columns: Sequence[Column]) -> Column:
        left, right = _common(columns)
        valid = both(columns)
        if left.dtype.kind == "i":
            zero = right == 0
            if zero.any():
                right = np.where(zero, 1, right)
                valid = ~zero if valid is None else valid & ~zero
        return Column(compute(left, right), valid)

    return implementation


def _and(columns: Sequence[Column]) -> Column:
    return _kleene(columns, decisive=False)


def _or(columns: Sequence[Column]) -> Column:
    return _kleene(columns, decisive=True)


def _kleene(columns: Sequence[Column], *, decisive: bool) -> Column:
    """Kleene's and/or: one decisive operand decides, whatever is unknown."""
    decided = np.zeros(len(columns[0]), np.bool_)
    for column in columns:
        hit = column.values == decisive
        decided |= hit if column.valid is None else hit & column.valid
    known = both(columns)
    return Column(decided == decisive if decisive else ~decided, None if known is None else known | decided)


def _if(columns: Sequence[Column]) -> Column:
    test, *sides = columns
    yes, no = _common(sides)
    valid = test.valid
    if sides[0].valid is not None or sides[1].valid is not None:
        masks = [np.ones(len(test), np.bool_) if side.valid is None else side.valid for side in sides]
        chosen = np.where(test.values, *masks)
        valid = chosen if valid is None else valid & chosen
    return Column(np.where(test.values, yes, no), valid)


def _coalesce(columns: Sequence[Column]) -> Column:
    values = _common(columns)
    result, valid = values[0], columns[0].valid
    for value, column in zip(values[1:], columns[1:], strict=True):
        if valid is None:
            break
        result = np.where(valid, result, value)
        valid = None if column.valid is None else valid | column.valid
    return Column(result, valid)


def _is_null(columns: Sequence[Column]) -> Column:
    (column,) = columns
    return Column(np.zeros(len(column), np.bool_) if column.valid is None else ~column.valid)


def _int(values: Any) -> Any:
    return np.trunc(values).astype("<i8") if values.dtype.kind == "f" else values.astype("<i8")


def _bucket(columns: Sequence[Column]) -> Column:
    value, *bounds = columns
    edges = np.array([bound.values[0] for bound in bounds], "<f8") if len(value) else np.zeros(0)
    return Column(np.searchsorted(edges, value.values.astype("<f8"), side="right").astype("<i8"), value.valid)


def _hash_bucket(columns: Sequence[Column]) -> Column:
    value, count = columns
    buckets = int(count.values[0]) if len(count) else 1
    found = [zlib.crc32(str(item).encode()) % buckets for item in value.values.tolist()]
    return Column(np.array(found, "<i8"), value.valid)


def _texts(compute: Callable[..., Any], dtype: Any = object) -> Implementation:
    """A function of texts, one row at a time."""

    def implementation(columns: Sequence[Column]) -> Column:
        rows = zip(*(column.values.tolist() for column in columns), strict=True)
        result = np.empty(len(columns[0]), dtype)
        result[:] = [compute(*row) for row in rows]
        return Column(result, both(columns))

    return implementation


def _haversine(lat1: Any, lon1: Any, lat2: Any, lon2: Any) -> Any:
    """Great-circle distance in km of points in degrees (Sinnott, Sky & Telescope 68 (1984) 159)."""
    half_lat, half_lon = np.radians(lat2 - lat1) / 2, np.radians(lon2 - lon1) / 2
    along = np.sin(half_lat) ** 2 + np.cos(np.radians(lat1)) * np.cos(np.radians(lat2)) * np.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(along, 1.0)))


IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "add": _numbers(np.add),
    "subtract": _numbers(np.subtract),
    "multiply": _numbers(np.multiply),
    "divide": _reals(np.divide),
    "floor_divide": _whole(np.floor_divide),
    "modulo": _whole(np.mod),
    "power": _reals(np.power),
    "negate": _strict(np.negative),
    "equal": _numbers(np.equal),
    "not_equal": _numbers(np.not_equal),
    "less": _numbers(np.less),
    "less_equal": _numbers(np.less_equal),
    "greater": _numbers(np.greater),
    "greater_equal": _numbers(np.greater_equal),
    "and": _and,
    "or": _or,
    "not": _strict(np.logical_not),
    "if": _if,
    "abs": _strict(np.abs),
    "least": _numbers(lambda *values: np.minimum.reduce(values)),
    "greatest": _numbers(lambda *values: np.maximum.reduce(values)),
    "clip": _numbers(lambda value, low, high: np.minimum(np.maximum(value, low), high)),
    "log": _reals(np.log),
    "log1p": _reals(np.log1p),
    "exp": _reals(np.exp),
    "sqrt": _reals(np.sqrt),
    "floor": _reals(np.floor),
    "ceil": _reals(np.ceil),
    "round": _reals(np.rint),
    "haversine_km": _reals(_haversine),
    "float": _strict(lambda values: values.astype("<f8")),
    "int": _strict(_int),
    "coalesce": _coalesce,
    "is_null": _is_null,
    "bucket": _bucket,
    "hash_bucket": _hash_bucket,
    "lower": _texts(str.lower),
    "upper": _texts(str.upper),
    "length": _texts(len, "<i8"),
    "concat": _texts(lambda *parts: "".join(parts)),
    "hour": _strict(lambda micros: (micros % _DAY) // _HOUR),
    "weekday": _strict(lambda micros: (micros // _DAY + 3) % 7),
    "seconds_between": _strict(lambda earlier, later: (later - earlier) / 1_000_000),
}
"""The implementation of each function; `weekday` is 0 on Mondays."""
