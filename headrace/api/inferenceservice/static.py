"""Answers that no model gives: a fixed one, tensor by tensor, and the last one."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, model_validator

from headrace.api.schema import LIST_ATOMIC, Model, PositiveDuration, list_map

_WHOLE = {
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
}
"""Least and greatest value of the datatypes of whole numbers."""
_WRITE = {
    "BOOL": "write true or false",
    "BYTES": "write text in quotes",
    "FP32": "write numbers",
    "FP64": "write numbers",
    **{name: f"write whole numbers from {least} to {most}" for name, (least, most) in _WHOLE.items()},
}
"""What a tensor's values are to be, by its datatype."""


def _is_a(datatype: str, value: Any) -> bool:
    """Whether a JSON value is one of this datatype."""
    if datatype in ("BOOL", "BYTES"):
        return isinstance(value, bool if datatype == "BOOL" else str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if datatype in ("FP32", "FP64"):
        return True
    least, most = _WHOLE[datatype]
    return isinstance(value, int) and least <= value <= most


class Tensor(Model):
    """One named output tensor of the Open Inference Protocol, without the batch dimension."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the output."""
    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "BYTES"
    ]
    """Element type."""
    shape: Annotated[
        list[Annotated[int, Field(ge=1, le=65536)]], Field(max_length=8, json_schema_extra=LIST_ATOMIC)
    ] = Field(default_factory=list)
    """Shape for one row of the request; the batch dimension is put before it."""
    data: Annotated[
        list[Any],
        Field(max_length=65536),
        WithJsonSchema(
            {
                "type": "array",
                "maxItems": 65536,
                "items": {"x-kubernetes-preserve-unknown-fields": True},
                "x-kubernetes-list-type": "atomic",
            }
        ),
    ]
    """Flat row-major values for one row, repeated for each row of the request: as many as the product of `shape`."""

    @model_validator(mode="after")
    def _hold_one_row(self) -> Self:
        # Not a CEL rule: the values have no one type in a structural schema, so CEL does not see them.
        if len(self.data) != (count := math.prod(self.shape)):
            raise ValueError(
                f"data of output {self.name} has {len(self.data)} values and shape {self.shape} means {count}: "
                "change data or shape (which is that of one row, without the batch)"
            )
        for value in self.data:
            if not _is_a(self.datatype, value):
                right = f"{_WRITE[self.datatype]}, or change datatype"
                raise ValueError(f"data of output {self.name}: {value!r} is no {self.datatype}: {right}")
        return self


class StaticResponse(Model):
    """A fixed answer: the last resort that cannot fail."""

    outputs: Annotated[list[Tensor], Field(min_length=1, max_length=64, json_schema_extra=list_map("name"))]
    """Output tensors of the answer."""


class LastAnswer(Model):
    """The last answer that a step before gave to the same request (its id apart). Kept in each router's memory."""

    max_age: PositiveDuration = "5m"
    """Age above which an answer is not given any more."""
    max_entries: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Answers that a router keeps, those used last; at most 64 MiB of them."""
