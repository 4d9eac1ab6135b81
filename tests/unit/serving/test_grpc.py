"""The gRPC edge on real sockets, asked by tritonclient and by bare calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, service_pb2
from tritonclient.utils import InferenceServerException

from headrace.serving.grpc.generate import compiled
from headrace.serving.grpc.translate import BadReply, from_rest, to_rest
from headrace.serving.grpc.wire import DESCRIPTORS, METHODS, POOL, SERVICE
from headrace.serving.protocol import decode_request, encode_response, select_outputs
from headrace.serving.tensors import RequestError
from tests.unit.serving import fakes, models
from tests.unit.serving.test_predictor import serving, slow_request
from tests.unit.serving.test_protocol import ARRAYS
from tests.unit.serving.test_router import STATIC, running
from tests.unit.serving.waiting import until

ModelInferRequest, ModelInferResponse = METHODS["ModelInfer"]
TYPED = {"BOOL": "bool", "INT8": "int", "INT16": "int", "INT32": "int", "INT64": "int64", "UINT8": "uint"}
TYPED |= {"UINT16": "uint", "UINT32": "uint", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"}
"""Field of each datatype, from the protocol's specification."""


def test_the_descriptors_are_what_the_compiler_makes_of_the_proto() -> None:
    assert compiled() == DESCRIPTORS.read_bytes(), "stale: run python -m headrace.serving.grpc.generate"


def test_every_message_is_on_the_wire_what_tritonclient_has() -> None:
    ours = POOL.FindServiceByName(SERVICE)
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert theirs.full_name == ours.full_name
    seen = set()

    def compare(mine: Any, other: Any) -> None:
        if mine.full_name in seen:
            return
        seen.add(mine.full_name)
        assert mine.full_name == other.full_name
        for field in mine.fields:
            same = other.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (same.number, same.type, same.is_repeated), field
            if field.message_type is not None:
                compare(field.message_type, same.message_type)

    for method in ours.methods:
        other = theirs.methods_by_name[method.name]
        compare(method.input_type, other.input_type)
        compare(method.output_type, other.output_type)
    assert len(seen) > 15


def raw_request(array: np.ndarray, datatype: str) -> Any:
    """A request as tritonclient encodes it."""
    tensor = InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    message = ModelInferRequest(model_name="demo", id="42")
    message.inputs.append(METHODS["ModelInfer"][0].InferInputTensor(name="x", datatype=datatype, shape=array.shape))
    message.raw_input_contents.append(tensor._get_content())
    return message


def typed_request(array: np.ndarray, datatype: str, **changes: Any) -> Any:
    message = ModelInferRequest(model_name="demo")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=changes.get("shape", array.shape))
    values = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
    getattr(tensor.contents, changes.get("field") or f"{TYPED[datatype]}_contents").extend(values)
    return message


@pytest.mark.parametrize(
    ("datatype", "raw"), [*((datatype, True) for datatype in ARRAYS), *((datatype, False) for datatype in TYPED)]
)
def test_every_datatype_there_and_back(datatype: str, raw: bool) -> None:
    array = ARRAYS[datatype]
    message = (raw_request if raw else typed_request)(array, datatype)
    request = decode_request(*to_rest(message))
    expected = np.array([item.encode() for item in array.ravel()], object) if datatype == "BYTES" else array.ravel()
    np.testing.assert_array_equal(request.inputs["x"].ravel(), expected)
    assert request.inputs["x"].shape == array.shape
    body, length = encode_response("demo", request, [(select_outputs(request, ["x"])[0], request.inputs["x"])])
    answer = from_rest(body, str(length), raw)
    if raw:
        assert list(answer.raw_output_contents) == list(message.raw_input_contents)
        assert answer.id == "42"
    else:
        assert answer.outputs[0].contents == message.inputs[0].contents
    assert list(answer.outputs[0].shape) == list(array.shape)


def wrong(change: str) -> Any:
    x = np.zeros((1, 4), np.float32)
    message = raw_request(x, "FP32")
    match change:
        case "short":
            message.raw_input_contents[0] = b"\0" * 12
        case "two raw":
            message.raw_input_contents.append(b"")
        case "both":
            message.inputs[0].contents.fp32_contents.append(1)
        case "field":
            message = typed_request(np.zeros((1, 4), int), "FP32", field="int64_contents")
        case "count":
            message = typed_request(x, "FP32", shape=[2, 4])
        case "range":
            message = typed_request(np.array([300]), "UINT8")
        case "half":
            message = typed_request(x, "FP16", field="fp32_contents")
    return message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("short", ["'x'", "[1, 4] of FP32", "16 bytes", "raw_input_contents[0]", "12"]),
        ("two raw", ["1 inputs", "2 raw_input_contents"]),
        ("both", ["'x'", "both"]),
        ("field", ["'x'", "expected fp32_contents", "found int64_contents"]),
        ("count", ["'x'", "[2, 4] holds 8 values", "fp32_contents has 4"]),
        ("range", ["'x'", "range of UINT8"]),
        ("half", ["'x'", "'FP16'", "raw_input_contents"]),
    ],
)
def test_a_message_that_contradicts_itself_is_refused_by_name(change: str, words: list[str]) -> None:
    with pytest.raises(RequestError) as refused:
        to_rest(wrong(change))
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"<html>", None),
        (b"[]", None),
        (b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1]}]}', None),
        (b'{"outputs":[{"name":"y","datatype":"FP33","shape":[1],"data":[1]}]}', None),
        (b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}]}1234', "84"),
    ],
)
def test_an_answer_that_is_none_is_no_crash(body: bytes, length: str | None) -> None:
    with pytest.raises(BadReply):
        from_rest(body, length, True)


def test_an_answer_in_json_with_a_missing_value_becomes_nan() -> None:
    body = b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[1.5,null]}]}'
    np.testing.assert_array_equal(
        np.frombuffer(from_rest(body, None, True).raw_output_contents[0], "<f4"), [1.5, np.nan]
    )


@asynccontextmanager
async def calling(port: int) -> AsyncIterator[Any]:
    """ModelInfer as a bare call."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )


X = np.arange(8, dtype=np.float32).reshape(2, 4)


async def test_tritonclient_with_every_method(tmp_path: Path) -> None:
    def ask(port: int) -> None:
        with InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("demo", "1")
            assert not client.is_model_ready("other")
            assert "binary_tensor_data" in client.get_server_metadata().extensions
            metadata = client.get_model_metadata("demo")
            assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("y", "FP32", [-1, 3])]
            tensor = InferInput("x", [2, 4], "FP32")
            tensor.set_data_from_numpy(X)
            for outputs in (None, [InferRequestedOutput("y")]):
                for options in ({}, {"compression_algorithm": "gzip"}, {"model_version": "1", "client_timeout": 20}):
                    result = client.infer("demo", [tensor], outputs=outputs, request_id="7", **options)
                    np.testing.assert_allclose(result.as_numpy("y"), models.expected(X), rtol=1e-4)
                    assert result.get_response().id == "7"
            bad = InferInput("x", [2, 4], "FP64")
            bad.set_data_from_numpy(X.astype(np.float64))
            refusals: tuple[tuple[Callable[[], Any], str, str], ...] = (
                (lambda: client.infer("demo", [bad]), "INVALID_ARGUMENT", "'x': expected datatype FP32, found FP64"),
                (lambda: client.infer("other", [tensor]), "NOT_FOUND", "'other'; this server serves 'demo'"),
                (lambda: client.get_model_metadata("demo", "9"), "NOT_FOUND", "version '9'"),
                (
                    lambda: client.infer("demo", [tensor], outputs=[InferRequestedOutput("z")]),
                    "INVALID_ARGUMENT",
                    "output 'z' is not served; the outputs are y",
                ),
            )
            for call, status, words in refusals:
                with pytest.raises(InferenceServerException) as refused:
                    call()
                assert refused.value.status() == f"StatusCode.{status}"
                assert words in refused.value.message()

    ports: list[int] = []
    async with serving(models.linear(tmp_path / "m.onnx"), grpc=ports.append):
        await asyncio.to_thread(ask, ports[0])


async def test_text_and_typed_contents(tmp_path: Path) -> None:
    message = ModelInferRequest(model_name="demo")
    for name in "ab":
        message.inputs.add(name=name, datatype="INT64", shape=[1, 2]).contents.int64_contents.extend([20, 22])
    message.inputs.add(name="text", datatype="BYTES", shape=[2]).contents.bytes_contents.extend(["wörd".encode(), b""])
    ports: list[int] = []
    async with serving(models.two_inputs(tmp_path / "m.onnx"), grpc=ports.append), calling(ports[0]) as infer:
        outputs = {tensor.name: tensor.contents for tensor in (await infer(message)).outputs}
        assert list(outputs["sum"].int64_contents) == [40, 44]
        assert list(outputs["same"].bytes_contents) == ["wörd".encode(), b""]


async def test_the_fallback_answers_and_says_why() -> None:
    async with (
        fakes.replicas(fakes.status(500)) as [one],
        running([one], STATIC, grpc=True) as router,
        calling(router.grpc_port) as infer,
    ):
        call = infer(raw_request(X, "FP32"), metadata=(("traceparent", "00-1-2-3"),))
        answer = await call
        np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], "<f4"), [0.25, 0, 1] * 2)
        told = dict(await call.trailing_metadata())
        assert told["headrace-step"] == "last"
        assert told["headrace-fallback-reason"] == "predictor=error"
        assert b"traceparent: 00-1-2-3\r\n" in one.heads[0]
        assert 'headrace_protocol_requests_total{protocol="grpc",status="200"} 1.0' in (await router.get("/metrics"))[1]


async def test_no_step_is_unavailable_and_names_each() -> None:
    async with running([], grpc=True) as router, calling(router.grpc_port) as infer:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await infer(raw_request(X, "FP32"))
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "predictor: not-ready" in (failed.value.details() or "")
        assert dict(failed.value.trailing_metadata())["headrace-fallback-reason"] == "predictor=not-ready"


async def test_the_deadline_of_a_call_holds_for_the_whole_chain() -> None:
    async with (
        fakes.replicas(fakes.stall) as [one],
        running([one], STATIC, grpc=True, timeout="30s") as router,
        calling(router.grpc_port) as infer,
    ):
        call = infer(raw_request(X, "FP32"), timeout=1.0)
        await call
        assert dict(await call.trailing_metadata())["headrace-fallback-reason"] == "predictor=timeout"


async def test_a_call_that_is_cancelled_stops_the_run(tmp_path: Path) -> None:
    message = ModelInferRequest(model_name="demo")
    for tensor in slow_request()["inputs"]:
        added = message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        field = added.contents.int64_contents if tensor["datatype"] == "INT64" else added.contents.fp32_contents
        field.extend(tensor["data"])
    ports: list[int] = []
    async with (
        serving(models.slow(tmp_path / "m.onnx"), threads=1, grpc=ports.append) as (_, _, pool),
        calling(ports[0]) as infer,
    ):
        call = infer(message)
        await until(lambda: pool.in_flight == 1, "it runs")
        call.cancel()
        await until(lambda: pool.in_flight == 0, "the run was stopped")


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with running([], STATIC, grpc=True) as router, calling(router.grpc_port) as infer:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await infer(raw_request(np.zeros((1, 400_000), np.float32), "FP32"))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
