"""A predictor on a real socket: asked by tritonclient, overloaded, left by its callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from headrace.serving.drain import Leaving, Times, serve
from headrace.serving.http import ProtocolServer
from headrace.serving.metrics import PredictorMetrics
from headrace.serving.models.onnx_model import OnnxModel
from headrace.serving.pool import ModelPool
from headrace.serving.predictor import Predictor
from tests.unit.serving import models
from tests.unit.serving.waiting import until

HUNDRED_MILLION = 100_000_000


@asynccontextmanager
async def serving(
    file: Path | None, threads: int = 2, waiting: int = 4, grpc: Callable[[int], None] | None = None
) -> AsyncIterator[tuple[int, Predictor, ModelPool]]:
    leaving = Leaving()
    pool = ModelPool(threads, waiting)
    metrics = PredictorMetrics("demo", lambda: pool.in_flight)
    predictor = Predictor("demo", pool, metrics, leaving)
    predictor.model = OnnxModel(file, 1) if file else None
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = asyncio.ensure_future(
        serve(
            ProtocolServer(predictor, metrics.registry),
            "127.0.0.1",
            0,
            leaving,
            Times(0, 5),
            on_listening=listening.set_result,
            grpc_port=None if grpc is None else 0,
            on_grpc=grpc or (lambda port: None),
        )
    )
    try:
        yield await listening, predictor, pool
    finally:
        leaving.begin()
        await server
        pool.close()


async def test_tritonclient_with_every_way_of_sending_and_asking(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)

    def ask(port: int) -> None:
        with InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("demo", "1")
            assert not client.is_model_ready("other")
            assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
            assert client.get_model_metadata("demo")["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
            for binary_in in (True, False):
                for outputs in (None, [InferRequestedOutput("y", binary_data=False)]):
                    tensor = InferInput("x", [3, 4], "FP32")
                    tensor.set_data_from_numpy(x, binary_data=binary_in)
                    for options in ({}, {"request_compression_algorithm": "gzip"}, {"model_version": "1"}):
                        result = client.infer("demo", [tensor], outputs=outputs, request_id="7", **options)
                        np.testing.assert_allclose(result.as_numpy("y"), models.expected(x), rtol=1e-4)
                        assert result.get_response()["id"] == "7"
            wrong = InferInput("x", [3, 4], "FP64")
            wrong.set_data_from_numpy(x.astype(np.float64))
            with pytest.raises(InferenceServerException, match="'x': expected datatype FP32, found FP64") as refused:
                client.infer("demo", [wrong])
            assert refused.value.status() == "400"

    async with serving(models.linear(tmp_path / "m.onnx")) as (port, _, _):
        await asyncio.to_thread(ask, port)


async def test_tritonclient_with_text(tmp_path: Path) -> None:
    def ask(port: int) -> None:
        with InferenceServerClient(f"127.0.0.1:{port}") as client:
            inputs = [InferInput(name, [1, 2], "INT64") for name in "ab"]
            for tensor in inputs:
                tensor.set_data_from_numpy(np.array([[20, 22]]))
            text = InferInput("text", [2], "BYTES")
            text.set_data_from_numpy(np.array(["wörd", ""], dtype=object))
            result = client.infer("demo", [*inputs, text])
            assert result.as_numpy("sum").tolist() == [[40, 44]]
            assert [item.decode() for item in result.as_numpy("same")] == ["wörd", ""]

    async with serving(models.two_inputs(tmp_path / "m.onnx")) as (port, _, _):
        await asyncio.to_thread(ask, port)


async def test_before_the_model_is_loaded_it_lives_and_is_not_ready() -> None:
    async with serving(None) as (port, _, _), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for path, status in {"/v2/health/live": 200, "/v2/health/ready": 503, "/v2/models/demo": 503}.items():
            assert (await session.get(path)).status == status
        response = await session.post("/v2/models/demo/infer", data=b"{}")
        assert response.status == 503
        assert "being loaded" in (await response.json())["error"]


def slow_request(count: int = HUNDRED_MILLION) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0]},
            {"name": "count", "shape": [1], "datatype": "INT64", "data": [count]},
        ]
    }


async def test_more_requests_than_threads_and_queue_are_refused_at_once(tmp_path: Path) -> None:
    async with (
        serving(models.slow(tmp_path / "m.onnx"), threads=1, waiting=1) as (port, _, pool),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        held = [asyncio.ensure_future(session.post("/v2/models/demo/infer", json=slow_request())) for _ in range(2)]
        await until(lambda: pool.in_flight == 2, "both are in")
        response = await session.post("/v2/models/demo/infer", json=slow_request(1))
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert "overloaded" in (await response.json())["error"]
        # The callers leave: the run in progress is stopped, the waiting one never begins, and there is room again.
        for task in held:
            task.cancel()
        await until(lambda: pool.in_flight == 0, "there is room")
        response = await session.post("/v2/models/demo/infer", json=slow_request(3))
        assert (await response.json())["outputs"][0]["data"] == [3.0]


async def test_a_request_whose_time_is_over_is_stopped(tmp_path: Path) -> None:
    async with (
        serving(models.slow(tmp_path / "m.onnx"), threads=1) as (port, _, pool),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        headers = {"headrace-timeout-ms": "100"}
        response = await session.post("/v2/models/demo/infer", json=slow_request(), headers=headers)
        assert response.status == 504
        await until(lambda: pool.in_flight == 0, "there is room")


async def test_a_model_that_fails_is_an_error_and_the_server_lives(tmp_path: Path, caplog: Any) -> None:
    async with serving(models.linear(tmp_path / "m.onnx")) as (port, predictor, _):

        class Broken:
            output_names = ("y",)

            def run(self, *_: Any) -> Any:
                raise RuntimeError("kernel exploded")

        predictor.model = Broken()  # type: ignore[assignment]
        body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            response = await session.post("/v2/models/demo/infer", json=body)
            assert response.status == 500
            assert "kernel" not in await response.text()
            assert (await session.get("/v2/health/live")).status == 200
        assert "kernel exploded" in caplog.text
