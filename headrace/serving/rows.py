"""Rows of plain JSON to tensors and back: the convenience endpoint for callers that have records, not arrays.

A row is an object with a value for each input of the model, or the values alone in the inputs' order; where the model
has one input, the value alone. A value is what one row of the input's shape holds: a number, text, or a list. The
answer has a row of named outputs for each row of the request. Rows become binary tensors at the edge, so that what is
behind it (the chain, replicas, models) sees an ordinary request of the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.serving.protocol import MODEL_VERSION, TensorSpec
from headrace.serving.tensors import Array, RequestError, from_binary, from_json, to_binary, to_json

FIELDS = ("rows", "id", "outputs")


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """A request of rows as a request of the protocol.

    Attributes:
        body: REST body with binary tensor data.
        json_length: Length of its JSON part.
        count: Number of rows.
        id: The client's name for the request.
    """

    body: bytes
    json_length: str
    count: int
    id: str


def specs_of(metadata: bytes) -> tuple[TensorSpec, ...]:
    """The inputs in a body of model metadata."""
    return tuple(
        TensorSpec(tensor["name"], tensor["datatype"], tuple(tensor["shape"]))
        for tensor in orjson.loads(metadata)["inputs"]
    )


def to_request(body: bytes, inputs: Sequence[TensorSpec]) -> RowsRequest:
    """Rows as tensors.

    Args:
        body: ``{"rows": […], "outputs": […]?, "id": …?}``.
        inputs: What the model takes; the first dimension of each is that of the rows.

    Raises:
        RequestError: names the row and the input, what was expected and what was found.
    """
    document = _document(body)
    rows = document["rows"]
    for spec in inputs:
        if not spec.shape:
            raise RequestError(f"input {spec.name!r} of the model has no dimension for rows; use infer")
    named = [_named(i, row, inputs) for i, row in enumerate(rows)]
    parts: list[bytes] = []
    tensors = []
    for spec in inputs:
        array = _column(spec, [row[spec.name] for row in named])
        data = to_binary(array)
        parts.append(data)
        parameters = {"binary_data_size": len(data)}
        tensors.append(
            {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "parameters": parameters}
        )
    request: dict[str, Any] = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    if document.get("outputs"):
        request["outputs"] = [{"name": name} for name in document["outputs"]]
    head = orjson.dumps(request)
    return RowsRequest(b"".join((head, *parts)), str(len(head)), len(rows), document.get("id", ""))


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is no valid JSON: {error} (JSON has no NaN and no Infinity)") from None
    if not isinstance(document, dict):
        raise RequestError('the body must be a JSON object such as {"rows": [{…}, …]}')
    for name in document:
        if name not in FIELDS:
            raise RequestError(f"field {name!r} is unknown; the fields are {', '.join(FIELDS)}")
    rows = document.get("rows")
    if not isinstance(rows, list) or not rows:
        raise RequestError(f"rows must be a list of at least one row, found {_kind(rows)}")
    if not isinstance(document.get("id", ""), str):
        raise RequestError(f"id must be a string, found {document['id']!r}")
    outputs = document.get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(name, str) for name in outputs):
        raise RequestError(f"outputs must be a list of names, found {outputs!r}")
    return document


def _named(i: int, row: Any, inputs: Sequence[TensorSpec]) -> Mapping[str, Any]:
    """A row as values by the names of the inputs."""
    if isinstance(row, dict):
        for spec in inputs:
            if spec.name not in row:
                found = f"found {', '.join(row)}" if row else "the row is empty"
                raise RequestError(f"rows[{i}]: {spec.name!r} is missing; expected {describe(spec)}, {found}")
        if len(row) > len(inputs):
            known = [spec.name for spec in inputs]
            extra = next(name for name in row if name not in known)
            raise RequestError(f"rows[{i}]: {extra!r} is unknown; the model takes {', '.join(known)}")
        return row
    if len(inputs) == 1:
        return {inputs[0].name: row}
    if not isinstance(row, list):
        raise RequestError(
            f"rows[{i}] must be an object or a list of the values of {', '.join(spec.name for spec in inputs)}; "
            f"found {_kind(row)}"
        )
    if len(row) != len(inputs):
        raise RequestError(
            f"rows[{i}] has {len(row)} values; the model takes {len(inputs)}: {', '.join(spec.name for spec in inputs)}"
        )
    return {spec.name: value for spec, value in zip(inputs, row, strict=True)}


def describe(spec: TensorSpec) -> str:
    """What one row holds of an input, in words."""
    sizes = spec.shape[1:]
    if sizes in ((), (1,)):
        return f"one {spec.datatype}"
    return f"{spec.datatype} {list(sizes)}" + (" (-1 is any size)" if -1 in sizes else "")


def _column(spec: TensorSpec, values: list[Any]) -> Array:
    """All rows of one input."""
    sizes = spec.shape[1:]
    scalar = sizes in ((), (1,))
    if scalar:
        values = [value[0] if sizes and isinstance(value, list) and len(value) == 1 else value for value in values]
    shape = _sizes(values[0], len(sizes)) if -1 in sizes else list(sizes)
    try:
        array = from_json(spec.name, spec.datatype, [len(values), *([] if scalar else shape)], values)
    except RequestError as error:
        if len(values) == 1:
            raise _of_row(0, spec, values[0], shape, scalar) or error from None
        for i, value in enumerate(values):
            wrong = _of_row(i, spec, value, shape, scalar)
            if wrong is not None:
                raise wrong from None
        raise
    if array.ndim > 1 or scalar:
        # from_json takes a flat list for any shape; a row must be nested as its shape says.
        for i, value in enumerate(values):
            if not scalar and _sizes(value, len(sizes)) != shape:
                raise _shape_error(i, spec, value)
    return array.reshape(len(values), *shape) if scalar else array


def _of_row(i: int, spec: TensorSpec, value: Any, shape: list[int], scalar: bool) -> RequestError | None:
    """What is wrong with one row's value; None where nothing is."""
    if scalar and isinstance(value, (list, dict)):
        return _shape_error(i, spec, value)
    if not scalar and (not isinstance(value, list) or _sizes(value, len(shape)) != shape):
        return _shape_error(i, spec, value)
    try:
        from_json(spec.name, spec.datatype, [1, *([] if scalar else shape)], [value])
    except RequestError as error:
        return RequestError(f"rows[{i}]: {error}")
    return None


def _shape_error(i: int, spec: TensorSpec, value: Any) -> RequestError:
    return RequestError(f"rows[{i}]: {spec.name!r}: expected {describe(spec)}, found {_kind(value)}")


def _sizes(value: Any, rank: int) -> list[int]:
    """Sizes of a nested list along its first items."""
    sizes: list[int] = []
    while isinstance(value, list) and len(sizes) < rank + 1:
        sizes.append(len(value))
        value = value[0] if value else None
    return sizes


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "an object"
        case list():
            return f"a list of {_sizes(value, 31)}" if value else "an empty list"
        case str():
            return f"the text {value[:40]!r}"
    return f"{value!r}"


def to_rows(model_name: str, request: RowsRequest, body: bytes, json_length: str | None) -> bytes:
    """An answer of the protocol as rows.

    Raises:
        RequestError: an output has no value for each row, or is no text.
    """
    at = len(body) if json_length is None else int(json_length)
    view = memoryview(body)
    columns: dict[str, list[Any]] = {}
    for tensor in orjson.loads(view[:at])["outputs"]:
        name, shape = tensor["name"], tensor["shape"]
        if not shape or shape[0] != request.count:
            raise RequestError(
                f"output {name!r} of shape {shape} has no value for each of the {request.count} rows; "
                "name other outputs, or use infer"
            )
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            array = from_json(name, tensor["datatype"], shape, tensor["data"])
        else:
            array = from_binary(name, tensor["datatype"], shape, view[at : at + size])
            at += size
        columns[name] = _values(array)
    answer: dict[str, Any] = {"model_name": model_name, "model_version": MODEL_VERSION}
    if request.id:
        answer["id"] = request.id
    answer["rows"] = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return orjson.dumps(answer)


def _values(array: Array) -> list[Any]:
    flat = array.shape[1:] in ((), (1,))
    if array.dtype.kind == "O":
        text = to_json(array)
        if flat:
            return text
        width = len(text) // len(array)
        return [text[i * width : (i + 1) * width] for i in range(len(array))]
    values: list[Any] = (array.ravel() if flat else array).tolist()
    return values
