"""gRPC messages to the bodies of the REST protocol and back.

Inside, a request is what REST with binary tensor data makes of it: routers pass that on to replicas and steps without
decoding it. So gRPC is translated at the edge, once each way: raw contents are put behind a JSON head as they came,
and everything behind the edge (chain, breakers, replicas, models) answers both protocols in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from headrace.serving.grpc.wire import ModelInferResponse
from headrace.serving.tensors import DTYPES, Array, RequestError, from_binary, from_json, out_of_range, to_binary

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of each datatype that has one; FP16 travels raw."""


class BadReply(Exception):
    """An answer from behind is none of the protocol."""


def to_rest(request: Any) -> tuple[bytes, str]:
    """The REST body of a ModelInferRequest and the length of its JSON part.

    Raises:
        RequestError: the message contradicts itself; all else is found by whoever decodes the body.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            f"the request has {len(request.inputs)} inputs and {len(raw)} raw_input_contents; send one for each input"
        )
    parts: list[bytes] = []
    inputs = []
    for i, tensor in enumerate(request.inputs):
        shape = list(tensor.shape)
        if raw:
            if tensor.HasField("contents") and tensor.contents.ListFields():
                raise RequestError(
                    f"input {tensor.name!r}: has both contents and raw_input_contents; send one of the two"
                )
            data = raw[i]
            _check_size(tensor.name, tensor.datatype, shape, len(data), i)
        else:
            data = _typed(tensor, shape)
        parts.append(data)
        parameters = {**_parameters(tensor.parameters), "binary_data_size": len(data)}
        inputs.append({"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "parameters": parameters})
    document: dict[str, Any] = {
        "inputs": inputs,
        "parameters": {**_parameters(request.parameters), "binary_data_output": True},
    }
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": {**_parameters(output.parameters), "binary_data": True}}
            for output in request.outputs
        ]
    head = orjson.dumps(document)
    return b"".join((head, *parts)), str(len(head))


def _check_size(name: str, datatype: str, shape: list[int], found: int, i: int) -> None:
    dtype = DTYPES.get(datatype)
    if dtype is None or dtype.kind == "O" or any(size < 0 for size in shape):
        return
    needed = math.prod(shape) * dtype.itemsize
    if needed != found:
        raise RequestError(
            f"input {name!r}: shape {shape} of {datatype} takes {needed} bytes, raw_input_contents[{i}] has {found}"
        )


def _typed(tensor: Any, shape: list[int]) -> bytes:
    """The bytes of a tensor whose values are in typed contents."""
    name, datatype = tensor.name, tensor.datatype
    given = [field.name for field, _ in tensor.contents.ListFields()]
    wanted = CONTENTS.get(datatype)
    if wanted is None:
        if given:
            remedy = "send it in raw_input_contents" if datatype in DTYPES else f"use one of {', '.join(DTYPES)}"
            raise RequestError(f"input {name!r}: datatype {datatype!r} has no typed contents; {remedy}")
        return b""
    if given not in ([], [wanted]):
        raise RequestError(f"input {name!r}: expected {wanted} for datatype {datatype}, found {', '.join(given)}")
    values = getattr(tensor.contents, wanted)
    if all(size >= 0 for size in shape) and math.prod(shape) != len(values):
        raise RequestError(
            f"input {name!r}: shape {shape} holds {math.prod(shape)} values, {wanted} has {len(values)}; "
            "make the two agree"
        )
    if datatype == "BYTES":
        return b"".join(part for item in values for part in (len(item).to_bytes(4, "little"), item))
    try:
        # The field of the small integers is wider than they are, and numpy checks Python numbers alone.
        return to_binary(np.array(list(values), dtype=DTYPES[datatype]))
    except OverflowError:
        raise out_of_range(name, datatype) from None


def _parameters(parameters: Any) -> dict[str, Any]:
    found = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(parameter, choice)
    return found


def _set_parameters(target: Any, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        match value:
            case bool():
                target[name].bool_param = value
            case int() if -(2**63) <= value < 2**63:
                target[name].int64_param = value
            case int():
                target[name].uint64_param = value
            case float():
                target[name].double_param = value
            case str():
                target[name].string_param = value
            case _:
                target[name].string_param = orjson.dumps(value).decode()


def from_rest(body: bytes, json_length: str | None, raw: bool) -> Any:
    """The ModelInferResponse of a REST answer.

    Args:
        body: The answer's body.
        json_length: Length of its JSON part, None where it is JSON alone.
        raw: Whether values go as raw contents, as the protocol wants it for a request that came so; else as typed
            contents, unless an output has a datatype without.

    Raises:
        BadReply: the body is no answer of the protocol.
    """
    view = memoryview(body)
    at = len(body) if json_length is None else int(json_length)
    try:
        document = orjson.loads(view[:at])
        response = ModelInferResponse(
            model_name=document.get("model_name", ""),
            model_version=document.get("model_version", ""),
            id=document.get("id", ""),
        )
        _set_parameters(response.parameters, document.get("parameters") or {})
        tensors = document["outputs"]
        raw = raw or any(tensor["datatype"] not in CONTENTS for tensor in tensors)
        for tensor in tensors:
            name, datatype, shape = tensor["name"], tensor["datatype"], tensor["shape"]
            parameters = dict(tensor.get("parameters") or {})
            size = parameters.pop("binary_data_size", None)
            output = response.outputs.add(name=name, datatype=datatype, shape=shape)
            if parameters:
                _set_parameters(output.parameters, parameters)
            if size is None:
                array = _from_json(name, datatype, shape, tensor["data"])
                if raw:
                    response.raw_output_contents.append(to_binary(array))
                else:
                    _fill(output.contents, datatype, array)
                continue
            data = view[at : at + size]
            if len(data) != size:
                raise BadReply(f"output {name!r} has {len(data)} bytes of its {size}")
            at += size
            if raw:
                response.raw_output_contents.append(bytes(data))
            else:
                _fill(output.contents, datatype, from_binary(name, datatype, shape, data))
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError, RequestError) as error:
        raise BadReply(f"the answer is not of the Open Inference Protocol: {error}") from error
    return response


def _from_json(name: str, datatype: str, shape: list[int], data: Any) -> Array:
    """An output whose values are JSON, where null stands for NaN."""
    if DTYPES[datatype].kind == "f" and None in data:
        data = [math.nan if value is None else value for value in data]
        return np.array(data, dtype=DTYPES[datatype]).reshape(shape)
    return from_json(name, datatype, shape, data)


def _fill(contents: Any, datatype: str, array: Array) -> None:
    getattr(contents, CONTENTS[datatype]).extend(
        [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
    )
