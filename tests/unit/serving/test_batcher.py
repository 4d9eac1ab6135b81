"""Requests that come together run as one; each gets its own rows, its own error, and no later than it was promised."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from headrace.serving.batcher import Batcher
from headrace.serving.models.base import ModelError, Stop
from headrace.serving.models.onnx_model import OnnxModel
from headrace.serving.pool import ModelPool, Overloaded
from headrace.serving.protocol import TensorSpec
from headrace.serving.tensors import Array, RequestError
from tests.unit.serving import models
from tests.unit.serving.test_predictor import serving

OPEN = TensorSpec("x", "FP32", (-1, 2))


class Counting:
    """Doubles x; refuses a batch with a negative number in it. Remembers the rows of each run."""

    platform = "test"
    inputs: Sequence[TensorSpec] = (OPEN,)
    outputs: Sequence[TensorSpec] = (TensorSpec("y", "FP32", (-1, 2)),)
    output_names: Sequence[str] = ("y",)

    def __init__(self) -> None:
        self.runs: list[int] = []

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], stop: Stop | None = None) -> list[Array]:
        self.runs.append(len(inputs["x"]))
        if (inputs["x"] < 0).any():
            raise RequestError("input 'x': no negative numbers")
        return [inputs["x"] * 2]


def rows(value: float, count: int = 1) -> Mapping[str, Array]:
    return {"x": np.full((count, 2), value, np.float32)}


async def batcher(model: Counting, latency: float, most: int = 100) -> Batcher:
    return Batcher(model, ModelPool(1, 100), 8, latency, most)


async def test_each_gets_its_own_rows_of_one_run() -> None:
    model = Counting()
    together = await batcher(model, 30.0)  # what is full does not wait
    answers = await asyncio.gather(*(together.run(rows(i, 2), ["y"]) for i in range(4)))
    assert model.runs == [8]
    for i, (answer,) in enumerate(answers):
        np.testing.assert_array_equal(answer, np.full((2, 2), 2 * i))


async def test_a_request_waits_for_others_no_longer_than_it_was_promised() -> None:
    model = Counting()
    together = await batcher(model, 0.05)
    begun = asyncio.get_running_loop().time()
    await together.run(rows(1), ["y"])
    assert 0.04 < asyncio.get_running_loop().time() - begun < 5
    assert model.runs == [1]


async def test_one_that_the_model_refuses_costs_the_others_nothing() -> None:
    model = Counting()
    together = await batcher(model, 0.01)
    good, bad, other = await asyncio.gather(
        together.run(rows(1), ["y"]),
        together.run(rows(-1), ["y"]),
        together.run(rows(3), ["y"]),
        return_exceptions=True,
    )
    assert isinstance(bad, RequestError)
    assert not isinstance(good, BaseException)
    assert not isinstance(other, BaseException)
    np.testing.assert_array_equal(np.concatenate([good[0], other[0]]), [[2, 2], [6, 6]])
    assert model.runs == [3, 1, 1, 1]


async def test_only_requests_alike_go_together_and_large_ones_alone() -> None:
    model = Counting()
    together = await batcher(model, 0.01)
    wide = {"x": np.ones((1, 3), np.float32)}
    await asyncio.gather(together.run(rows(1), ["y"]), together.run(wide, ["y"]), together.run(rows(1, 9), ["y"]))
    assert sorted(model.runs) == [1, 1, 9]


async def test_whoever_has_left_is_not_waited_on_and_too_many_are_refused() -> None:
    model = Counting()
    together = await batcher(model, 0.02, most=2)
    gone, stays = (asyncio.ensure_future(together.run(rows(i), ["y"])) for i in (1, 2))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await together.run(rows(3), ["y"])
    gone.cancel()
    np.testing.assert_array_equal((await stays)[0], [[4, 4]])
    assert model.runs == [1]
    assert together.in_flight == 0


async def test_a_model_of_fixed_size_cannot_be_batched(tmp_path: Path) -> None:
    fixed = OnnxModel(models.linear(tmp_path / "m.onnx", rows=1), 1)
    with pytest.raises(ModelError, match=r"'x' of shape \[1, 4\]: batching needs a first dimension"):
        Batcher(fixed, ModelPool(1, 1), 8, 0.01, 8)


async def test_a_predictor_that_batches_answers_and_refuses_as_one_that_does_not(tmp_path: Path) -> None:
    file = models.linear(tmp_path / "m.onnx")
    async with serving(file) as (port, predictor, pool):
        model = predictor.model
        assert model is not None
        sizes: list[int] = []
        predictor.batcher = Batcher(model, pool, 64, 0.01, 64, sizes.append)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def ask(value: float, width: int = 4) -> tuple[int, dict[str, object]]:
                tensor = {"name": "x", "shape": [1, width], "datatype": "FP32", "data": [value] * width}
                response = await session.post("/v2/models/demo/infer", json={"inputs": [tensor]})
                return response.status, await response.json()

            answers = await asyncio.gather(*(ask(i) for i in range(8)), ask(1, width=5))
        *good, (status, refusal) = answers
        assert status == 400
        assert "expected shape [-1, 4]" in str(refusal["error"])
        for i, (status, body) in enumerate(good):
            assert status == 200
            outputs = body["outputs"]
            assert isinstance(outputs, list)
            np.testing.assert_allclose(outputs[0]["data"], models.expected(np.full((1, 4), i))[0])
        assert sum(sizes) == 9
        assert max(sizes) > 1
