"""An inference request and its answer as the parts of a router see them: bytes, not yet or no longer parsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from headrace.serving.models.base import Model, Stop
from headrace.serving.protocol import (
    InferRequest,
    RequestedOutput,
    decode_request,
    encode_response,
    error_body,
    select_outputs,
)
from headrace.serving.tensors import Array

JSON = "application/json"
BINARY = "application/octet-stream"
Watch = Callable[[Model, Mapping[str, Array]], None]


@dataclass(frozen=True, slots=True)
class Query:
    """One inference request.

    Attributes:
        json_length: The `protocol.BINARY_HEADER` header, None where the body is JSON alone.
        headers: Headers that go on to a replica as they came (tracing).
        unit: The user or session that an allocation is by; empty for nobody.
    """

    body: bytes
    json_length: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        age: Seconds since it was made, where it was not made for this request.
    """

    status: int
    body: bytes
    json_length: str | None = None
    age: int | None = None

    @property
    def content_type(self) -> str:
        return JSON if self.json_length is None else BINARY


def refusal(status: int, message: str) -> Reply:
    """An error in the protocol's form."""
    return Reply(status, error_body(message))


def infer(
    model_name: str, model: Model, query: Query, stop: Stop | None = None, watch: Watch = lambda model, inputs: None
) -> Reply:
    """Decode, run, encode: the whole work on one request, to be done in a thread. `watch` is shown inputs that were
    answered.

    Raises:
        RequestError: the request is not one that the model can answer.
        Stopped: `stop` was used.
    """
    request, wanted = understand(model, query)
    arrays = model.run(request.inputs, [output.name for output in wanted], stop)
    watch(model, request.inputs)
    return encoded(model_name, request, wanted, arrays)


def understand(model: Model, query: Query) -> tuple[InferRequest, Sequence[RequestedOutput]]:
    """A decoded request, and the outputs to answer with.

    Raises:
        RequestError: it is no request to this model.
    """
    request = decode_request(query.body, query.json_length)
    return request, select_outputs(request, model.output_names)


def encoded(
    model_name: str, request: InferRequest, wanted: Sequence[RequestedOutput], arrays: Sequence[Array]
) -> Reply:
    """The answer of a model's outputs.

    Raises:
        RequestError: an output cannot be written in JSON.
    """
    body, json_length = encode_response(model_name, request, list(zip(wanted, arrays, strict=True)))
    return Reply(200, body, None if json_length is None else str(json_length))
