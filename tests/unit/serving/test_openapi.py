"""The description of a service, checked by openapi-spec-validator and jsonschema, and asked as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from headrace.serving.openapi import document, page
from tests.unit.serving import models
from tests.unit.serving.test_predictor import serving
from tests.unit.serving.test_router import STATIC, running


def schema_of(described: dict[str, Any], path: str) -> Draft202012Validator:
    operation = described["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": described["components"]})


@pytest.mark.parametrize("make", [models.linear, models.two_inputs])
async def test_the_document_is_valid_and_its_examples_are_answered(make: Any, tmp_path: Path) -> None:
    async with (
        serving(make(tmp_path / "m.onnx")) as (port, _, _),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        async with session.get("/openapi.json") as response:
            described = await response.json()
        validate(described)
        for path, operations in described["paths"].items():
            if "get" in operations:
                async with session.get(path) as response:
                    assert response.status == 200, path
                continue
            example = operations["post"]["requestBody"]["content"]["application/json"]["example"]
            schema_of(described, path).validate(example)
            async with session.post(path, json=example) as response:
                assert response.status == 200, await response.text()
                answered = operations["post"]["responses"]["200"]["content"]["application/json"]["schema"]
                Draft202012Validator({**answered, "components": described["components"]}).validate(
                    await response.json()
                )


def test_the_schema_of_rows_refuses_what_the_server_refuses() -> None:
    tensors = [
        {"name": "age", "datatype": "INT64", "shape": [-1, 1]},
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
    ]
    described = document("demo", "1", {"inputs": tensors, "outputs": []})
    schema = schema_of(described, "/v2/models/demo/rows")
    for row, valid in (
        ({"age": 1, "x": [1, 2]}, True),
        ([1, [1, 2]], True),
        ({"age": 1}, False),
        ({"age": 1, "x": [1]}, False),
        ({"age": 1.5, "x": [1, 2]}, False),
        ({"age": 1, "x": [1, 2], "y": 1}, False),
        ([1], False),
    ):
        assert schema.is_valid({"rows": [row]}) is valid, row


async def test_the_page_of_a_service_needs_nothing_from_elsewhere() -> None:
    async with running([], STATIC) as router:
        for path in ("/docs", "/"):
            async with router.session.get(f"http://127.0.0.1:{router.port}{path}") as response:
                text = await response.text()
                assert response.status == 200
                assert response.content_type == "text/html"
                policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert not re.search(r"(src|href)=.?(https?:)?//", text)
        assert "/v2/models/demo/rows" in text


def test_names_are_escaped() -> None:
    tensor = {"name": "<script>alert(1)</script>", "datatype": "FP32", "shape": [-1]}
    text = page("demo", "1", {"inputs": [tensor], "outputs": [tensor]}).decode()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
