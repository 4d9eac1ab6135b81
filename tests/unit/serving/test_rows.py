"""Rows of JSON: what becomes of them, and what is said of those that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest

from headrace.serving.protocol import TensorSpec, decode_request
from headrace.serving.rows import to_request, to_rows
from headrace.serving.tensors import RequestError
from tests.unit.serving import fakes, models
from tests.unit.serving.test_predictor import serving
from tests.unit.serving.test_router import STATIC, running

AGE = TensorSpec("age", "INT64", (-1, 1))
INCOME = TensorSpec("income", "FP32", (-1,))
CITY = TensorSpec("city", "BYTES", (-1, 1))
PERSON = (AGE, INCOME, CITY)
PIXELS = (TensorSpec("x", "FP32", (-1, 2, 2)),)
OPEN = (TensorSpec("x", "FP32", (-1, -1)),)


def arrays(rows: Any, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    request = to_request(orjson.dumps({"rows": rows}), specs)
    return dict(decode_request(request.body, request.json_length).inputs)


@pytest.mark.parametrize(
    "rows",
    [
        [{"age": 40, "income": 1.5, "city": "Köln"}, {"city": "", "age": 7, "income": 2}],
        [[40, 1.5, "Köln"], [7, 2, ""]],
        [{"age": [40], "income": 1.5, "city": ["Köln"]}, [7, 2, ""]],
    ],
)
def test_named_and_positional_rows_are_the_same_tensors(rows: Any) -> None:
    found = arrays(rows, PERSON)
    assert {name: (array.shape, array.tolist()) for name, array in found.items()} == {
        "age": ((2, 1), [[40], [7]]),
        "income": ((2,), [1.5, 2.0]),
        "city": ((2, 1), [["Köln".encode()], [b""]]),
    }


def test_a_model_with_one_input_takes_its_values_alone() -> None:
    value = [[1, 2], [3, 4]]
    for rows in ([value, value], [{"x": value}, {"x": value}]):
        np.testing.assert_array_equal(arrays(rows, PIXELS)["x"], [value, value])
    np.testing.assert_array_equal(arrays([1, 2.5], (INCOME,))["income"], [1, 2.5])
    np.testing.assert_array_equal(arrays([[1, 2, 3]], OPEN)["x"], [[1, 2, 3]])


@pytest.mark.parametrize(
    ("body", "specs", "words"),
    [
        (b"nonsense", PERSON, ["no valid JSON"]),
        (b'{"rows": [[NaN]]}', OPEN, ["no valid JSON", "NaN"]),
        (b"[1]", PERSON, ["JSON object"]),
        (b'{"row": []}', PERSON, ["'row' is unknown", "rows"]),
        (b'{"rows": []}', PERSON, ["at least one row", "empty list"]),
        (b'{"rows": [1], "outputs": "y"}', PERSON, ["outputs", "'y'"]),
        (b'{"rows": [5]}', PERSON, ["rows[0]", "age, income, city", "found 5"]),
        (b'{"rows": [[1, 2, "a"], [1, 2]]}', PERSON, ["rows[1] has 2 values", "takes 3: age, income, city"]),
        (b'{"rows": [{"age": 1, "income": 2}]}', PERSON, ["rows[0]: 'city' is missing", "one BYTES", "age, income"]),
        (b'{"rows": [{}]}', PERSON, ["rows[0]: 'age' is missing", "the row is empty"]),
        (b'{"rows": [{"age": 1, "income": 2, "city": "a", "zip": 3}]}', PERSON, ["rows[0]: 'zip' is unknown", "city"]),
        (b'{"rows": [[1, 2, "a"], [1.5, 2, "a"]]}', PERSON, ["rows[1]", "'age'", "integers", "fraction"]),
        (b'{"rows": [[1, 2, "a"], [1, "two", "a"]]}', PERSON, ["rows[1]", "'income'", "numbers", "strings"]),
        (b'{"rows": [[1, 2, "a"], [1, null, "a"]]}', PERSON, ["rows[1]", "'income'", "numbers", "null"]),
        (b'{"rows": [[1, 2, "a"], [1, 1e39, "a"]]}', PERSON, ["rows[1]", "'income'", "range of FP32"]),
        (b'{"rows": [[1, [2, 3], "a"]]}', PERSON, ["rows[0]: 'income': expected one FP32", "a list of [2]"]),
        (b'{"rows": [[[1, 2], [3, 4]], [[1, 2], [3]]]}', PIXELS, ["'x'", "ragged"]),
        (b'{"rows": [[[1, 2], [3, 4]], [[1, 2, 3]]]}', PIXELS, ["rows[1]", "'x'", "FP32 [2, 2]", "a list of [1, 3]"]),
        (b'{"rows": [[1, 2, 3, 4]]}', PIXELS, ["rows[0]", "'x'", "FP32 [2, 2]", "a list of [4]"]),
        (b'{"rows": [[1, 2], [1, 2, 3]]}', OPEN, ["rows[1]", "'x'", "a list of [3]"]),
        (b'{"rows": [true]}', (INCOME,), ["rows[0]", "'income'", "booleans"]),
        (b'{"rows": [1]}', (TensorSpec("n", "INT64", ()),), ["'n'", "no dimension for rows"]),
    ],
)
def test_rows_that_do_not_fit_are_named(body: bytes, specs: tuple[TensorSpec, ...], words: list[str]) -> None:
    with pytest.raises(RequestError) as refused:
        to_request(body, specs)
    for word in words:
        assert word in str(refused.value)


def test_an_output_that_is_not_one_per_row_is_refused() -> None:
    request = to_request(b'{"rows": [1, 2]}', (INCOME,))
    answer = b'{"outputs":[{"name":"sum","datatype":"FP32","shape":[1],"data":[3]}]}'
    with pytest.raises(RequestError, match=r"output 'sum' of shape \[1\] has no value for each of the 2 rows"):
        to_rows("demo", request, answer, None)


async def test_rows_at_a_predictor(tmp_path: Path) -> None:
    x = [[1, 2, 3, 4], [0.5, 0, 0, -1]]
    async with (
        serving(models.linear(tmp_path / "m.onnx")) as (port, _, _),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        for path in ("/v2/models/demo/rows", "/v2/models/demo/versions/1/rows"):
            body = {"rows": [x[0], {"x": x[1]}], "id": "7", "outputs": ["y"]}
            async with session.post(path, json=body) as response:
                answer = await response.json()
            assert response.status == 200
            assert response.headers["Content-Type"] == "application/json"
            assert (answer["model_name"], answer["id"]) == ("demo", "7")
            np.testing.assert_allclose([row["y"] for row in answer["rows"]], models.expected(np.array(x)), rtol=1e-5)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"rows": [[1, 2, 3]]}, "rows[0]: 'x': expected FP32 [4], found a list of [3]"),
            ({"rows": [x[0]], "outputs": ["z"]}, "output 'z' is not served; the outputs are y"),
        ]
        for body, words in wrong:
            async with session.post(path, json=body) as response:
                assert response.status == 400
                assert words in (await response.json())["error"]
        async with session.get(path) as response:
            assert response.status == 405
        async with session.get("/metrics") as response:
            text = await response.text()
        assert 'headrace_protocol_requests_total{protocol="rows",status="200"} 2.0' in text


async def test_rows_at_a_router_go_through_the_chain(tmp_path: Path) -> None:
    small = {"name": "small", "model": {"storageUri": f"file://{models.linear(tmp_path / 'model.onnx')}"}}
    async with fakes.replicas(fakes.status(500)) as [one], running([one], small, STATIC) as router:
        url = f"http://127.0.0.1:{router.port}/v2/models/demo/rows"
        await router.until(lambda: router.reports[-1].steps[1].state == "Standby", "the fallback model is loaded")
        # The predictor's metadata is 200 with a body that is none of a model's.
        async with router.session.post(url, json={"rows": [[1, 2, 3, 4]]}) as response:
            answer = await response.json()
        assert response.status == 200, answer
        assert response.headers["headrace-step"] == "small"
        assert response.headers["headrace-fallback-reason"] == "predictor=error"
        np.testing.assert_allclose(answer["rows"][0]["y"], models.expected(np.array([1, 2, 3, 4])))


async def test_rows_without_a_known_model_say_so() -> None:
    async with running([], STATIC) as router:
        url = f"http://127.0.0.1:{router.port}/v2/models/demo/rows"
        async with router.session.post(url, json={"rows": [[1, 2, 3, 4]]}) as response:
            assert response.status == 503
            assert "inputs of model 'demo' are not known" in (await response.json())["error"]
