"""Requests and answers against tritonclient, which encodes and decodes them without a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from headrace.serving.protocol import (
    TensorSpec,
    check_inputs,
    decode_request,
    encode_response,
    select_outputs,
)
from headrace.serving.tensors import RequestError

ARRAYS = {
    "BOOL": np.array([[True], [False]]),
    "UINT8": np.array([[0], [255]], np.uint8),
    "UINT16": np.array([[0], [65535]], np.uint16),
    "UINT32": np.array([[0], [2**32 - 1]], np.uint32),
    "UINT64": np.array([[3], [2**64 - 1]], np.uint64),
    "INT8": np.array([[-128], [127]], np.int8),
    "INT16": np.array([[-32768], [32767]], np.int16),
    "INT32": np.array([[-(2**31)], [2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63)], [2**63 - 1]], np.int64),
    "FP16": np.array([[0.5], [-65504.0]], np.float16),
    "FP32": np.array([[1e-45], [-3.4028235e38]], np.float32),
    "FP64": np.array([[5e-324], [1.7976931348623157e308]], np.float64),
    "BYTES": np.array([["héllo"], [""]], dtype=object),
}


def sent(array: np.ndarray, datatype: str, binary: bool, **options: Any) -> tuple[bytes, str | None]:
    tensor = InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    body, length = InferenceServerClient.generate_request_body([tensor], **options)
    return body, None if length is None else str(length)


# tritonclient sends FP16 as binary data alone.
@pytest.mark.parametrize(
    ("datatype", "binary"),
    [(datatype, binary) for datatype in ARRAYS for binary in (True, False) if binary or datatype != "FP16"],
)
def test_every_datatype_there_and_back(datatype: str, binary: bool) -> None:
    array = ARRAYS[datatype]
    wanted = [InferRequestedOutput("x", binary_data=binary)]
    request = decode_request(*sent(array, datatype, binary, outputs=wanted, request_id="42"))
    outputs = select_outputs(request, ["x"])
    body, length = encode_response("model", request, [(outputs[0], request.inputs["x"])])
    result = InferenceServerClient.parse_response_body(body, header_length=length)
    found = result.as_numpy("x")
    if datatype == "BYTES":
        found = np.vectorize(lambda item: item.decode() if isinstance(item, bytes) else item, otypes=[object])(found)
    np.testing.assert_array_equal(found, array)
    assert result.get_response()["id"] == "42"
    assert result.get_response()["model_name"] == "model"


def test_all_outputs_go_as_binary_where_the_client_names_none() -> None:
    request = decode_request(*sent(ARRAYS["FP32"], "FP32", True))
    assert [output.binary for output in select_outputs(request, ["a", "b"])] == [True, True]


def test_nan_travels_in_binary_data() -> None:
    array = np.array([[np.nan, np.inf]], np.float32)
    np.testing.assert_array_equal(decode_request(*sent(array, "FP32", True)).inputs["x"], array)


def body_of(**tensor: Any) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]} | tensor]})


def test_nested_and_flat_data_are_the_same() -> None:
    nested = decode_request(body_of(data=[[1, 2], [3, 4.5]])).inputs["x"]
    flat = decode_request(body_of(data=[1, 2, 3, 4.5])).inputs["x"]
    np.testing.assert_array_equal(nested, flat)
    assert nested.dtype == np.float32


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ["JSON"]),
        (b"[]", ["JSON object"]),
        (b"{}", ["inputs"]),
        (b'{"inputs": [3]}', ["inputs[0]"]),
        (b'{"inputs": [{"shape": [1]}]}', ["inputs[0]", "name"]),
        (body_of(datatype="FLOAT"), ["'x'", "'FLOAT'", "FP32"]),
        (body_of(datatype=None), ["'x'", "datatype"]),
        (body_of(shape=[2, -1]), ["'x'", "shape", "-1"]),
        (body_of(shape=[True, 4]), ["'x'", "shape"]),
        (body_of(shape=[3, 2]), ["'x'", "6 values", "has 4"]),
        (body_of(shape=[2**62, 2**62]), ["'x'", "elements"]),
        (body_of(shape=[4, 1], data=[[1, 2], [3, 4]]), ["'x'", "[4, 1]", "[2, 2]"]),
        (body_of(data=[[1, 2], [3]]), ["'x'", "ragged"]),
        (body_of(data=["a", "b", "c", "d"]), ["'x'", "numbers", "strings"]),
        (body_of(data=[1, 2, 3, True]), ["'x'", "numbers", "booleans"]),
        (body_of(data=["a" * 9_000_000, *[0] * 1_000_000]), ["'x'", "strings"]),
        (body_of(shape=[2**40, 0], data=[]), ["'x'", "elements"]),
        (body_of(data=[1, 2, 3, None]), ["'x'", "null"]),
        (body_of(data=5), ["'x'", "no list"]),
        (body_of(data=[1, 2, 3, 1e39]), ["'x'", "range of FP32"]),
        (body_of(datatype="INT64", data=[1, 2, 3, 4.5]), ["'x'", "integers", "fraction"]),
        (body_of(datatype="UINT8", data=[1, 2, 3, 256]), ["'x'", "range of UINT8"]),
        (body_of(datatype="UINT64", data=[1, 2, 3, -1]), ["'x'", "range of UINT64"]),
        (body_of(datatype="BOOL", data=[0, 1, 1, 0]), ["'x'", "booleans", "integers"]),
        (body_of(datatype="BYTES", data=["a", "b", "c", 4]), ["'x'", "strings", "integers"]),
        (body_of().replace(b"4]}", b"NaN]}"), ["'x'", "NaN", "binary"]),
        (body_of().replace(b"4]}", b"-Infinity]}"), ["'x'", "Infinity"]),
        (body_of(parameters={"binary_data_size": 16}), ["'x'", "both"]),
        (body_of(parameters=[]), ["'x'", "parameters"]),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}', ["'x'", "data is missing"]),
        (body_of()[:-1] + b', "outputs": [{"nom": "y"}]}', ["outputs[0]", "name"]),
        (body_of()[:-1] + b', "id": 5}', ["id", "5"]),
        (orjson.dumps({"inputs": orjson.loads(body_of())["inputs"] * 2}), ["'x'", "twice"]),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(body: bytes, words: list[str]) -> None:
    with pytest.raises(RequestError) as refused:
        decode_request(body)
    assert refused.value.status == 400
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body, length: (body, str(len(body) + 1)), ["Inference-Header-Content-Length"]),
        (lambda body, length: (body, "-1"), ["Inference-Header-Content-Length", "-1"]),
        (lambda body, length: (body[:-1], length), ["'x'", "bytes left"]),
        (lambda body, length: (body + b"\0", length), ["1 bytes", "no input claims"]),
        (
            lambda body, length: (body.replace(b'"binary_data_size":8', b'"binary_data_size":7') + b"", length),
            ["'x'", "takes 8 bytes", "7"],
        ),
        (
            lambda body, length: (body.replace(b'"binary_data_size":8', b'"binary_data_size":-'), length),
            ["JSON"],
        ),
    ],
)
def test_wrong_binary_data_is_told_what_is_wrong(change: Any, words: list[str]) -> None:
    body, length = sent(np.ones((2, 1), np.float32), "FP32", True)
    with pytest.raises(RequestError) as refused:
        decode_request(*change(body, length))
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (b"\x05\0\0\0abc", ["element 0", "5 bytes", "3 are left"]),
        (b"\x03\0\0\0abcd", ["left after 1"]),
        (b"\x03\0\0", ["do not fit"]),
    ],
)
def test_broken_strings_in_binary_data(tail: bytes, words: list[str]) -> None:
    head = orjson.dumps(
        {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}]}
    )
    with pytest.raises(RequestError) as refused:
        decode_request(head + tail, str(len(head)))
    for word in words:
        assert word in str(refused.value)


SPECS = (
    TensorSpec("a", "FP32", (-1, 2), ("n", None)),
    TensorSpec("b", "INT64", (-1,), ("n",)),
)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": np.ones((1, 2), np.float32)}, ["'b'", "missing", "INT64", "[-1]"]),
        (
            {"a": np.ones((1, 2), np.float64), "b": np.ones(1, np.int64)},
            ["'a'", "expected datatype FP32", "found FP64"],
        ),
        (
            {"a": np.ones((1, 3), np.float32), "b": np.ones(1, np.int64)},
            ["'a'", "expected shape [-1, 2]", "found [1, 3]"],
        ),
        ({"a": np.ones(2, np.float32), "b": np.ones(1, np.int64)}, ["'a'", "[-1, 2]", "found [2]"]),
        (
            {"a": np.ones((3, 2), np.float32), "b": np.ones(2, np.int64)},
            ["'b'", "'n' is 2", "3 in input 'a'"],
        ),
        (
            {"a": np.ones((1, 2), np.float32), "b": np.ones(1, np.int64), "c": np.ones(1)},
            ["'c'", "unknown", "a, b"],
        ),
    ],
)
def test_inputs_that_the_model_does_not_take(inputs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RequestError) as refused:
        check_inputs(SPECS, inputs)
    for word in words:
        assert word in str(refused.value)


def test_an_output_that_is_not_served() -> None:
    request = decode_request(body_of()[:-1] + b', "outputs": [{"name": "z"}]}')
    with pytest.raises(RequestError, match=r"'z'.*the outputs are y"):
        select_outputs(request, ["y"])


def test_nan_in_a_json_answer_is_null() -> None:
    request = decode_request(body_of())
    wanted = select_outputs(request, ["y"])
    body, _ = encode_response("m", request, [(wanted[0], np.array([np.nan, 1], np.float32))])
    assert orjson.loads(body)["outputs"][0]["data"] == [None, 1.0]
