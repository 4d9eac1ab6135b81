"""The Open Inference Protocol v2 over REST as pure functions: bytes to a request, outputs to bytes.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, with the binary
tensor data extension that clients such as tritonclient use unless told otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from headrace.serving.tensors import (
    DTYPES,
    Array,
    RequestError,
    datatype_of,
    from_binary,
    from_json,
    not_finite,
    to_binary,
    to_json,
)

BINARY_HEADER = "Inference-Header-Content-Length"
"""Length in bytes of the JSON part of a body; what follows it is binary tensor data."""
MODEL_VERSION = "1"
"""The one version that is served; a new model is a new rollout."""
MAX_RANK = 32
MAX_ELEMENTS = 2**31
"""Elements of a tensor, where dimensions of size 0 count as 1."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model says of one tensor; -1 is a dimension of any size.

    Attributes:
        symbols: Name of each dimension where the model gives one, so that inputs that share it can be compared.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    symbols: tuple[str | None, ...] = ()

    def manifest(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the client asks for by name."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded inference request.

    Attributes:
        id: The client's name for the request, given back in the answer.
        inputs: Arrays by name, in the order sent.
        outputs: Outputs asked for; empty means all.
        binary_output: Whether outputs go as bytes where the client does not say it per output.
    """

    id: str
    inputs: Mapping[str, Array]
    outputs: tuple[RequestedOutput, ...] = ()
    binary_output: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """First dimension of the first input; 1 for a scalar."""
        first = next(iter(self.inputs.values()))
        return int(first.shape[0]) if first.ndim else 1


def decode_request(body: bytes, json_length: str | None = None) -> InferRequest:
    """The request in a body.

    Args:
        body: The HTTP body.
        json_length: Value of the `BINARY_HEADER` header, None where it is absent.

    Raises:
        RequestError: the body is no valid request; the message names the part.
    """
    header, binary = _split(body, json_length)
    document = _load(header)
    tensors = document.get("inputs")
    if not isinstance(tensors, list) or not tensors:
        raise RequestError('the request has no inputs; send {"inputs": [{name, shape, datatype, data}]}')
    inputs: dict[str, Array] = {}
    at = 0
    for i, tensor in enumerate(tensors):
        name, datatype, shape = _tensor_head(i, tensor)
        if name in inputs:
            raise RequestError(f"input {name!r} is given twice")
        size = _parameters(tensor, f"input {name!r}").get("binary_data_size")
        if size is None:
            if "data" not in tensor:
                raise RequestError(f"input {name!r}: data is missing")
            inputs[name] = from_json(name, datatype, shape, tensor["data"])
            continue
        if "data" in tensor:
            raise RequestError(f"input {name!r}: has both data and binary_data_size; send one of the two")
        if not _is_size(size):
            raise RequestError(f"input {name!r}: binary_data_size must be a number of bytes, found {size!r}")
        if at + size > len(binary):
            raise RequestError(
                f"input {name!r}: binary_data_size is {size}, the body has {len(binary) - at} bytes left; "
                f"is the header {BINARY_HEADER} the length of the JSON part?"
            )
        inputs[name] = from_binary(name, datatype, shape, binary[at : at + size])
        at += size
    if at != len(binary):
        raise RequestError(f"the body has {len(binary) - at} bytes of binary data that no input claims")
    parameters = _parameters(document, "the request")
    outputs, binary_output = _requested(document, parameters)
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise RequestError(f"id must be a string, found {request_id!r}")
    return InferRequest(request_id, inputs, outputs, binary_output, parameters)


def _split(body: bytes, json_length: str | None) -> tuple[bytes | memoryview, memoryview]:
    if json_length is None:
        return body, memoryview(b"")
    if not json_length.isascii() or not json_length.isdigit() or int(json_length) > len(body):
        raise RequestError(
            f"the header {BINARY_HEADER} must be the length of the JSON part, at most the body's {len(body)} bytes; "
            f"found {json_length!r}"
        )
    view = memoryview(body)
    return view[: int(json_length)], view[int(json_length) :]


def _load(header: bytes | memoryview) -> dict[str, Any]:
    try:
        document = orjson.loads(header)
    except orjson.JSONDecodeError as error:
        raise _name_not_finite(bytes(header)) or RequestError(f"the body is no valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise RequestError("the body must be a JSON object")
    return document


def _name_not_finite(header: bytes) -> RequestError | None:
    """Which input holds NaN or Infinity, as some clients write them though JSON has no such thing."""
    if b"NaN" not in header and b"Infinity" not in header:
        return None
    try:
        inputs = json.loads(header)["inputs"]
        for tensor in inputs:
            if isinstance(tensor["data"], list) and not _finite(tensor["data"]):
                return not_finite(tensor["name"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return None


def _finite(data: Any) -> bool:
    if isinstance(data, list):
        return all(_finite(item) for item in data)
    return not isinstance(data, float) or math.isfinite(data)


def _tensor_head(i: int, tensor: Any) -> tuple[str, str, list[int]]:
    if not isinstance(tensor, dict):
        raise RequestError(f"inputs[{i}] must be an object with name, shape, datatype and data")
    name = tensor.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError(f"inputs[{i}]: name is missing")
    datatype = tensor.get("datatype")
    if datatype not in DTYPES:
        raise RequestError(f"input {name!r}: datatype {datatype!r} is none of {', '.join(DTYPES)}")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_size(size) for size in shape):
        raise RequestError(f"input {name!r}: shape must be a list of sizes such as [1, 64], found {shape!r}")
    if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise RequestError(
            f"input {name!r}: shape {shape} is larger than the {MAX_ELEMENTS} elements that a tensor may have"
        )
    return name, datatype, shape


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _parameters(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(f"{what}: parameters must be an object, found {parameters!r}")
    return parameters


def _requested(document: Mapping[str, Any], parameters: Mapping[str, Any]) -> tuple[tuple[RequestedOutput, ...], bool]:
    default = parameters.get("binary_data_output", False)
    if not isinstance(default, bool):
        raise RequestError(f"binary_data_output must be true or false, found {default!r}")
    wanted = document.get("outputs", [])
    if not isinstance(wanted, list):
        raise RequestError(f"outputs must be a list of objects with a name, found {wanted!r}")
    outputs = []
    for i, output in enumerate(wanted):
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str):
            raise RequestError(f"outputs[{i}]: name is missing")
        binary = _parameters(output, f"output {name!r}").get("binary_data", default)
        if not isinstance(binary, bool):
            raise RequestError(f"output {name!r}: binary_data must be true or false, found {binary!r}")
        outputs.append(RequestedOutput(name, binary))
    return tuple(outputs), default


def select_outputs(request: InferRequest, served: Sequence[str]) -> tuple[RequestedOutput, ...]:
    """The outputs to answer with: those asked for, or all.

    Raises:
        RequestError: an output is asked for that is not served.
    """
    if not request.outputs:
        return tuple(RequestedOutput(name, request.binary_output) for name in served)
    for output in request.outputs:
        if output.name not in served:
            raise RequestError(f"output {output.name!r} is not served; the outputs are {', '.join(served)}")
    return request.outputs


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Compare a request's inputs with what the model takes.

    Raises:
        RequestError: names the tensor, what was expected and what was found.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise RequestError(
                f"input {spec.name!r} is missing; expected {spec.datatype} {list(spec.shape)}, "
                f"found the inputs {', '.join(inputs)}"
            )
        datatype = datatype_of(array)
        if datatype != spec.datatype:
            raise RequestError(f"input {spec.name!r}: expected datatype {spec.datatype}, found {datatype}")
        shape = array.shape
        if len(shape) != len(spec.shape) or any(
            want not in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
        ):
            raise RequestError(
                f"input {spec.name!r}: expected shape {list(spec.shape)} (-1 is any size), found {list(shape)}"
            )
        for symbol, size in zip(spec.symbols, shape, strict=False):
            if symbol is None:
                continue
            first, owner = sizes.setdefault(symbol, (size, spec.name))
            if first != size:
                raise RequestError(
                    f"input {spec.name!r}: dimension {symbol!r} is {size}, but {first} in input "
                    f"{owner!r}; they must agree"
                )
    if len(inputs) > len(specs):
        known = [spec.name for spec in specs]
        extra = next(name for name in inputs if name not in known)
        raise RequestError(f"input {extra!r} is unknown; the model takes {', '.join(known)}")


def encode_response(
    model_name: str, request: InferRequest, outputs: Sequence[tuple[RequestedOutput, Array]]
) -> tuple[bytes, int | None]:
    """The body of an answer and, where it has binary parts, the length of its JSON (the `BINARY_HEADER` header).

    Raises:
        RequestError: an output cannot be written in JSON.
    """
    tensors: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for wanted, array in outputs:
        tensor: dict[str, Any] = {
            "name": wanted.name,
            "datatype": datatype_of(array),
            "shape": list(array.shape),
        }
        if wanted.binary:
            raw = to_binary(array)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            tensor["data"] = to_json(array)
        tensors.append(tensor)
    document: dict[str, Any] = {"model_name": model_name, "model_version": MODEL_VERSION, "outputs": tensors}
    if request.id:
        document["id"] = request.id
    head = orjson.dumps(document)
    if not parts:
        return head, None
    return b"".join((head, *parts)), len(head)


def model_metadata(name: str, platform: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """Body of ``GET /v2/models/{name}``."""
    return orjson.dumps(
        {
            "name": name,
            "versions": [MODEL_VERSION],
            "platform": platform,
            "inputs": [spec.manifest() for spec in inputs],
            "outputs": [spec.manifest() for spec in outputs],
        }
    )


def server_metadata(version: str) -> bytes:
    """Body of ``GET /v2``."""
    return orjson.dumps({"name": "headrace", "version": version, "extensions": ["binary_tensor_data"]})


def error_body(message: str) -> bytes:
    """Body of every answer that is no success."""
    return orjson.dumps({"error": message})
