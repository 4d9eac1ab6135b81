"""Tensors of the Open Inference Protocol to numpy arrays and back.

A tensor travels as JSON (``data``: a list, nested or flat, row-major) or as bytes after the JSON (the binary tensor
data extension: little-endian, row-major, without padding; a BYTES element is a 4-byte length and its bytes). Both
become one ``numpy.ndarray``; BYTES becomes an object array of ``bytes``.

Nothing is converted behind the sender's back: 1.5 is no INT64, 300 is no UINT8, a string is no number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""numpy's type of each datatype of the protocol (BF16 has none)."""

_NAMES: dict[tuple[str, int], str] = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items()}
_WANTED: dict[str, tuple[str, frozenset[type]]] = {
    "b": ("booleans", frozenset({bool})),
    "i": ("integers", frozenset({int})),
    "u": ("integers", frozenset({int})),
    "f": ("numbers", frozenset({int, float})),
    "O": ("strings", frozenset({str})),
}
"""By numpy's kind: what the values of a JSON list are called, and their types."""
_FOUND: dict[type, str] = {
    bool: "booleans",
    int: "integers",
    float: "numbers with a fraction",
    str: "strings",
    dict: "objects",
    type(None): "null",
}


class RequestError(Exception):
    """The request cannot be answered as it is; the message tells its sender what to change.

    Attributes:
        status: HTTP status of the answer, 4xx.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's element type.

    Raises:
        KeyError: the protocol has no such type.
    """
    return _NAMES[array.dtype.kind, array.dtype.itemsize]


def from_json(name: str, datatype: str, shape: list[int], data: Any) -> Array:
    """The array of an input whose values are JSON.

    Args:
        name: Name of the tensor, for messages.
        datatype: One of `DTYPES`.
        shape: Shape that the sender declared.
        data: Flat or nested list of the values in row-major order.

    Raises:
        RequestError: the values do not fit the datatype or the shape.
    """
    if not isinstance(data, list):
        raise RequestError(f"input {name!r}: data is no list; send a list of values")
    called, types = _WANTED[DTYPES[datatype].kind]
    for wrong in _leaf_types(data) - types:
        raise RequestError(f"input {name!r}: expected {called} for datatype {datatype}, found {_FOUND[wrong]}")
    array = _strings(name, data) if datatype == "BYTES" else _numbers(name, datatype, data)
    count = math.prod(shape)
    if array.size != count:
        raise RequestError(
            f"input {name!r}: shape {shape} holds {count} values, data has {array.size}; make the two agree"
        )
    if array.ndim > 1 and list(array.shape) != shape:
        raise RequestError(
            f"input {name!r}: shape is {shape}, data is nested as "
            f"{list(array.shape)}; make the two agree or send a flat list"
        )
    return array.reshape(shape)


def _numbers(name: str, datatype: str, data: list[Any]) -> Array:
    dtype = DTYPES[datatype]
    try:
        with np.errstate(over="ignore"):
            array = np.array(data, dtype=dtype)
    except OverflowError:
        raise out_of_range(name, datatype) from None
    except ValueError:
        raise _ragged(name) from None
    # JSON has no infinity, so an infinite value was a finite one that does not fit.
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise out_of_range(name, datatype)
    return array


def _leaf_types(data: list[Any]) -> set[type]:
    """Types of the values in a nested list; numpy alone would convert some of them silently."""
    found = set(map(type, data))
    if list in found:
        found.remove(list)
        for item in data:
            if type(item) is list:
                found |= _leaf_types(item)
    return found


def _ragged(name: str) -> RequestError:
    return RequestError(f"input {name!r}: data is a ragged list; rows must have equal length")


def out_of_range(name: str, datatype: str) -> RequestError:
    """The refusal of a number that the datatype cannot hold."""
    return RequestError(f"input {name!r}: a value is outside the range of {datatype}")


def not_finite(name: str) -> RequestError:
    """The refusal of NaN or Infinity in JSON."""
    return RequestError(
        f"input {name!r}: data has NaN or Infinity, which JSON cannot carry; "
        "send a number, or the tensor as binary data where the model takes missing values"
    )


def _strings(name: str, data: list[Any]) -> Array:
    shape: list[int] = []
    level: Any = data
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    flat: list[Any] = data
    for width in shape[1:]:
        if not all(isinstance(row, list) and len(row) == width for row in flat):
            raise _ragged(name)
        flat = [item for row in flat for item in row]
    array = np.empty(len(flat), dtype=object)
    for i, item in enumerate(flat):
        if isinstance(item, list):
            raise _ragged(name)
        array[i] = item.encode()
    return array.reshape(shape)


def from_binary(name: str, datatype: str, shape: list[int], data: memoryview) -> Array:
    """The array of an input whose values are bytes after the JSON. The array is read-only and shares the memory.

    Raises:
        RequestError: the number of bytes does not fit the datatype and the shape.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _split_strings(name, count, data).reshape(shape)
    dtype = DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise RequestError(
            f"input {name!r}: shape {shape} of {datatype} takes {count * dtype.itemsize} bytes, "
            f"binary_data_size is {len(data)}"
        )
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    if datatype == "BOOL" and array.size and int(array.view("u1").max()) > 1:
        raise RequestError(f"input {name!r}: a BOOL byte is neither 0 nor 1")
    return array


def _split_strings(name: str, count: int, data: memoryview) -> Array:
    # Each element takes at least its four length bytes, so the count is checked before memory is taken.
    if count * 4 > len(data):
        raise RequestError(f"input {name!r}: {count} BYTES elements do not fit in {len(data)} bytes of binary data")
    array = np.empty(count, dtype=object)
    at = 0
    for i in range(count):
        if at + 4 > len(data):
            raise RequestError(f"input {name!r}: binary data ends at element {i} of {count}")
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if at + size > len(data):
            raise RequestError(f"input {name!r}: element {i} says {size} bytes, {len(data) - at} are left")
        array[i] = bytes(data[at : at + size])
        at += size
    if at != len(data):
        raise RequestError(f"input {name!r}: {len(data) - at} bytes are left after {count} BYTES elements")
    return array


def to_json(array: Array) -> list[Any]:
    """Flat row-major values for a JSON answer; bytes that are no UTF-8 raise.

    NaN and infinities are written as null, which is all that JSON has for them.

    Raises:
        RequestError: a BYTES value is no text; the client must ask for binary data.
    """
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind != "O":
        return values
    try:
        return [item.decode() if isinstance(item, bytes) else item for item in values]
    except UnicodeDecodeError:
        raise RequestError("an output holds bytes that are no UTF-8 text; ask for it as binary data") from None


def to_binary(array: Array) -> bytes:
    """Little-endian row-major bytes of an output."""
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        raw = item.encode() if isinstance(item, str) else item
        parts.append(len(raw).to_bytes(4, "little"))
        parts.append(raw)
    return b"".join(parts)
