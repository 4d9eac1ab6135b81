"""One entity's row in the online store: a few hundred bytes, read with one `struct` call.

    int64    when the row became true, microseconds since 1970 in UTC
    bytes    a bit per field, least significant first: 1 where it has a value
    fields   in the order of the layout, little-endian and without padding; a text has its length in bytes (uint32) here
    texts    UTF-8, one after the other

Layouts are never mixed: rows lie under the hash of the transform that made them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.features.columns import Column, ColumnError

_CODES = {"Bool": "?", "Int32": "i", "Int64": "q", "Float32": "f", "Float64": "d", "String": "I", "Timestamp": "q"}
_DTYPES = {
    "Bool": "?",
    "Int32": "<i4",
    "Int64": "<i8",
    "Float32": "<f4",
    "Float64": "<f8",
    "String": "<u4",
    "Timestamp": "<i8",
}
Row = tuple[int, tuple[Any, ...]]
"""When it became true, and a value per field, None for null."""


class RowLayout:
    """Packs and reads rows of the given fields.

    Args:
        fields: Declared type of each field by its name.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.names = tuple(fields)
        self._types = tuple(fields.values())
        self._mask_bytes = (len(self.names) + 7) // 8
        self._head = struct.Struct(f"<q{self._mask_bytes}s" + "".join(_CODES[type_] for type_ in self._types))
        self._all = ((1 << len(self.names)) - 1).to_bytes(self._mask_bytes, "little")
        self._texts = tuple(index for index, type_ in enumerate(self._types) if type_ == "String")
        self._dtype = np.dtype(
            [("when", "<i8"), ("mask", "u1", (self._mask_bytes,))]
            + [(f"f{index}", _DTYPES[type_]) for index, type_ in enumerate(self._types)]
        )

    def pack(self, when: Any, columns: Mapping[str, Column]) -> list[bytes]:
        """Rows as bytes.

        Args:
            when: Shape (rows,), microseconds.
            columns: The fields.
        """
        rows = len(when)
        table = np.zeros(rows, self._dtype)
        table["when"] = when
        known = np.ones((rows, len(self.names)), np.bool_)
        texts: list[list[bytes]] = []
        for index, (name, type_) in enumerate(zip(self.names, self._types, strict=True)):
            column = columns[name]
            if column.valid is not None:
                known[:, index] = column.valid
            if type_ == "String":
                encoded = [
                    text.encode() if good else b""
                    for text, good in zip(column.values.tolist(), known[:, index].tolist(), strict=True)
                ]
                table[f"f{index}"] = [len(item) for item in encoded]
                texts.append(encoded)
            else:
                table[f"f{index}"] = column.values
        table["mask"] = np.packbits(known, axis=1, bitorder="little")
        size = self._dtype.itemsize
        whole = table.tobytes()
        heads = [whole[start : start + size] for start in range(0, len(whole), size)]
        if not texts:
            return heads
        return [b"".join(parts) for parts in zip(heads, *texts, strict=True)]

    def unpack(self, data: bytes) -> Row:
        """A row.

        Raises:
            ColumnError: It is too short to be one.
        """
        try:
            when, mask, *fields = self._head.unpack_from(data)
        except struct.error as error:
            raise ColumnError(f"a row of {len(data)} bytes is none of this layout; refresh the FeatureSet") from error
        if self._texts:
            at = self._head.size
            for index in self._texts:
                end = at + fields[index]
                fields[index] = data[at:end].decode()
                at = end
        if mask != self._all:
            bits = int.from_bytes(mask, "little")
            fields = [value if bits >> index & 1 else None for index, value in enumerate(fields)]
        return when, tuple(fields)


def entity_key(values: Sequence[Any]) -> bytes:
    """The field of the online store's hash that an entity's row has: its key as text; with several keys, each with its
    length before it, so that no two entities share one.
    """
    if len(values) == 1:
        return str(values[0]).encode()
    parts = [str(value).encode() for value in values]
    return b",".join(b"%d:%b" % (len(part), part) for part in parts)


def entity_keys(columns: Sequence[Column]) -> list[bytes]:
    """Keys of many entities."""
    if len(columns) == 1:
        return [str(value).encode() for value in columns[0].values.tolist()]
    return [entity_key(row) for row in zip(*(column.values.tolist() for column in columns), strict=True)]
