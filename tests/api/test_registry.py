"""A model lands in a real MLflow server, and MLflow itself loads it from there by its alias.

The server is a package of PyPI in an environment of its own, which uv keeps.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from headrace.api.inferenceservice import ModelSource
from headrace.api.trainingjob import Registry
from headrace.mlflow import Client, Point, RegistryError
from headrace.serving.models.base import ModelError
from headrace.serving.source import load_model
from headrace.storage import Unreachable
from headrace.training.environment import Environment
from headrace.training.export import Layer, classifier_to_onnx
from headrace.training.model_card import card
from headrace.training.registry import register
from tests.api.test_storage_s3 import free_port

pytestmark = pytest.mark.timeout(600)
MLFLOW = [os.environ.get("UV") or "uv", "tool", "run", "--quiet", "--from", "mlflow==3.17.2"]
MLFLOW += ["--with", "onnx", "--with", "onnxruntime"]
MODEL = classifier_to_onnx(
    np.zeros(2, np.float32),
    np.ones(2, np.float32),
    [Layer(np.array([[1, 0], [0, 1]], np.float32), np.zeros(2, np.float32))],
)
"""The class is the greater of two numbers."""
LOAD = """
import json, sys
import mlflow
import numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/greater@champion")
answer = model.predict({"input": np.array([[3, 1], [1, 3]], np.float32)})
print(json.dumps([np.asarray(answer["label"]).tolist(), model.metadata.signature.to_dict()["inputs"]]))
"""


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/db.sqlite"]
    options += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts", "--workers", "1"]
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*MLFLOW, "mlflow", "server", *options],
            stdout=output,
            stderr=output,
            cwd=folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 280
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"MLflow did not start (exit code {server.poll()}): {log.read_text()[-2000:]}")
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def ask(address: str, path: str) -> Any:
    return json.load(urllib.request.urlopen(f"{address}/api/2.0/mlflow/{path}", timeout=10))


def test_a_run_is_logged_and_its_model_can_be_loaded_by_alias(mlflow: str) -> None:
    files = {"metrics.json": b"{}", "model.onnx": MODEL}
    parameters = {"epochs": 3, "dataset": {"uri": "s3://data/x", "testFraction": 0.2}}
    about = card(Environment(job="greater"), files, {"accuracy": 0.97}, parameters, {}, time.time() - 60)
    curve = [Point("train/loss", 1 / step, step, time.time()) for step in range(1, 1201)]  # more than one request takes
    registry = Registry(tracking_uri=mlflow, model="greater", alias="champion")
    done = [register(registry, "greater", files, "s3://b/greater/model/model.onnx", about, curve) for _ in range(2)]

    assert [item.version for item in done] == ["1", "2"]
    run = ask(mlflow, f"runs/get?run_id={done[1].run_id}")["run"]
    assert run["info"]["status"] == "FINISHED"
    assert {item["key"]: item["value"] for item in run["data"]["params"]} == {
        "epochs": "3", "dataset.uri": "s3://data/x", "dataset.testFraction": "0.2"
    }  # fmt: skip
    metrics = {item["key"]: (item["value"], item["step"]) for item in run["data"]["metrics"]}
    assert metrics == {"train/loss": (1 / 1200, 1200), "accuracy": (0.97, 1200)}
    tags = {item["key"]: item["value"] for item in run["data"]["tags"]}
    assert tags["headrace.modelUri"] == "s3://b/greater/model/model.onnx"

    loaded = subprocess.run(
        [*MLFLOW, "python", "-c", LOAD, mlflow], capture_output=True, text=True, timeout=240, check=False
    )
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    labels, inputs = json.loads(loaded.stdout.strip().splitlines()[-1])
    assert labels == [0, 1]
    assert json.loads(inputs)[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 2]}


def test_what_the_server_refuses_is_said_in_its_words(mlflow: str) -> None:
    with pytest.raises(RegistryError, match=r"HTTP 404 .*does-not-exist") as caught:
        Client(mlflow).log("does-not-exist", {"a": "b"}, [])
    assert caught.value.code == "RESOURCE_DOES_NOT_EXIST"


def test_a_service_takes_a_model_by_name_and_alias(mlflow: str) -> None:
    files = {"model.onnx": MODEL}
    about = card(Environment(job="served"), files, {}, {}, {}, time.time())
    for alias in ("stable", "champion"):
        register(
            Registry(tracking_uri=mlflow, model="served", alias=alias),
            "served",
            files,
            "s3://b/m/model.onnx",
            about,
            [],
        )
    for reference in ({"alias": "champion"}, {"version": "1"}):
        source = ModelSource.model_validate({"registry": {"trackingUri": mlflow, "model": "served", **reference}})
        label, _ = load_model(source, None, 1).run(
            {"input": np.array([[3, 1], [1, 3]], np.float32)}, ["label", "probabilities"]
        )
        assert label.tolist() == [0, 1]
    for reference, says in (
        ({"model": "served", "alias": "nobody"}, "nobody.*correct model.registry"),
        ({"model": "unknown", "version": "1"}, "unknown.*correct model.registry"),
    ):
        wrong = ModelSource.model_validate({"registry": {"trackingUri": mlflow, **reference}})
        with pytest.raises(ModelError, match=says):
            load_model(wrong, None, 1)
    nowhere = ModelSource.model_validate(
        {"registry": {"trackingUri": f"http://127.0.0.1:{free_port()}", "model": "served", "version": "1"}}
    )
    with pytest.raises(Unreachable, match="see whether the MLflow server runs"):
        load_model(nowhere, None, 1)
