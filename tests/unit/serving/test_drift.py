"""How served rows differ from training rows, in figures that can be computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from headrace.api.inferenceservice import ModelSource
from headrace.drift import Drift, profile
from headrace.serving.source import load
from tests.unit.serving import models
from tests.unit.serving.test_predictor import serving

HALVES = [{"name": "x", "edges": [0.0], "shares": [0.5, 0.5], "missing": 0.0}]


class Clock:
    """A clock that is a second later each time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def served(drift: Drift, rows: np.ndarray) -> None:
    for start in range(0, len(rows), 100):
        drift.observe(rows[start : start + 100])


def test_the_index_of_two_bins_is_the_closed_form() -> None:
    drift = Drift(HALVES, Clock())
    rows = np.tile([-1.0, 1.0, 1.0, 1.0, 1.0], 100)[:, None]  # 0.2 and 0.8 where the training had 0.5 and 0.5
    served(drift, rows[:150])
    assert drift.figures()[0].psi is None  # too few to tell
    served(drift, rows)
    (figures,) = drift.figures()
    assert figures.psi == pytest.approx(0.3 * math.log(0.8 / 0.5) - 0.3 * math.log(0.2 / 0.5))


def test_rows_like_those_of_the_training_have_an_index_near_0_and_shifted_ones_a_large_one() -> None:
    random = np.random.default_rng(0)
    trained = random.normal(size=(20_000, 3))
    trained[::4, 2] = np.nan
    columns = profile(["a", "b", "c"], trained)
    assert columns is not None
    assert [round(column["missing"], 3) for column in columns] == [0, 0, 0.25]
    np.testing.assert_allclose(columns[0]["shares"], np.full(10, 0.1), atol=1e-3)
    drift = Drift(columns, Clock())
    rows = random.normal(size=(5000, 3)).astype(np.float32)
    rows[:, 1] += 1  # by one standard deviation: a PSI of about 1
    rows[::2, 2] = np.nan
    served(drift, rows)
    a, b, c = drift.figures()
    assert a.psi is not None
    assert b.psi is not None
    assert c.psi is not None
    assert a.psi < 0.02
    assert b.psi > 0.5
    assert c.psi < 0.02
    assert (a.missing, c.missing) == (0, 0.5)


def test_a_constant_column_and_tables_without_a_profile() -> None:
    columns = profile(["constant"], np.ones((100, 1)))
    assert columns == [{"name": "constant", "edges": [1.0], "shares": [1.0, 0.0], "missing": 0.0}]
    assert profile(["a"], np.empty((0, 1))) is None
    assert profile([], np.empty((5, 0))) is None
    with pytest.raises(ValueError, match="has other shares than bins"):
        Drift([{"name": "x", "edges": [1.0], "shares": [1.0]}])


async def test_a_predictor_shows_the_figures_of_a_model_whose_card_has_a_profile(tmp_path: Path) -> None:
    models.linear(tmp_path / "model.onnx")
    rows = np.random.default_rng(1).normal(size=(500, 4))
    (tmp_path / "card.json").write_text(json.dumps({"profile": profile(list("abcd"), rows)}))
    loaded = load(ModelSource(storage_uri=f"file://{tmp_path}"), None, 1)
    assert loaded.drift is not None
    async with serving(tmp_path / "model.onnx") as (port, predictor, _):
        predictor.drift = loaded.drift
        predictor._metrics.drift(loaded.drift)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            tensor = {"name": "x", "shape": [200, 4], "datatype": "FP32", "data": (rows[:200] + 3).ravel().tolist()}
            assert (await session.post("/v2/models/demo/infer", json={"inputs": [tensor]})).status == 200
            page = await (await session.get("/metrics")).text()
    value = next(line for line in page.splitlines() if 'feature_psi{feature="a"' in line).split()[-1]
    assert float(value) > 1
    (tmp_path / "card.json").write_text('{"profile": [{"name": "x"}]}')
    assert load(ModelSource(storage_uri=f"file://{tmp_path}"), None, 1).drift is None
