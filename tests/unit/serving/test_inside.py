"""A service whose primary runs inside the router: no replicas, no hop, and the chain behind it as ever."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris
from xgboost import XGBClassifier

from headrace.serving.models import trial
from tests.unit.serving import fakes
from tests.unit.serving.test_router import STATIC, running

IRIS, SPECIES = load_iris(return_X_y=True)
ROWS = IRIS[:3].astype(np.float32)
BODY = json.dumps(
    {"inputs": [{"name": "input", "shape": [3, 4], "datatype": "FP32", "data": ROWS.ravel().tolist()}]}
).encode()


async def test_the_router_answers_with_its_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "run", lambda name, file: None)  # test_formats has it
    trained = XGBClassifier(n_estimators=3, n_jobs=1).fit(IRIS, SPECIES)
    trained.save_model(tmp_path / "model.ubj")
    model = {"modelFormat": "XGBoost", "storageUri": f"file://{tmp_path}"}
    async with running([], STATIC, model=model, timeout="30s") as router:
        await router.until(lambda: router.answering == "predictor", "the primary answers")
        response, answer = await router.infer(BODY)
        assert (response.status, response.headers["headrace-step"]) == (200, "predictor")
        outputs = {item["name"]: item["data"] for item in answer["outputs"]}
        assert outputs["label"] == trained.predict(ROWS).tolist()
        np.testing.assert_allclose(outputs["probabilities"], trained.predict_proba(ROWS).ravel(), rtol=1e-6)
        status, page = await router.get("/metrics")
        assert status == 200
        assert 'headrace_inference_replicas{service="demo"} 1.0' in page
        status, page = await router.get("/v2/models/demo")
        assert json.loads(page)["platform"] == "xgboost_xgboost"


async def test_a_model_that_cannot_be_loaded_leaves_the_chain_behind_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    async with running([], STATIC, model={"storageUri": f"file://{tmp_path}"}) as router:
        await router.until(lambda: "is no ONNX model" in router.reports[-1].steps[0].reason, "the reason is reported")
        assert router.answering == "last"
        response, _ = await router.infer()
        assert (response.status, response.headers["headrace-step"]) == (200, "last")
        assert response.headers["headrace-fallback-reason"] == "predictor=not-ready"


async def test_a_container_with_a_name_of_its_own_is_asked_by_it() -> None:
    async with fakes.replicas(fakes.answer) as [theirs], running([theirs], model_name="theirs") as router:
        await router.until(lambda: router.answering == "predictor", "the container answers")
        assert (await router.infer())[0].status == 200
        assert theirs.heads[-1].startswith(b"POST /v2/models/theirs/infer ")
