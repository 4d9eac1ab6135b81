"""Traffic on the three-zone cluster: a bad canary is rolled back and a good one promoted while requests flow."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for
from tests.e2e.traffic import traffic

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVICE = "digits-canary"
SHADOWED = "digits-shadow"
WRITE = """
import base64, json, os
from headrace.storage import Store
for name, text in json.loads(os.environ["MODELS"]).items():
    Store.open(os.environ["FOLDER"]).write_bytes(name, base64.b64decode(text))
"""


def model(scale: float, *, broken: bool = False) -> bytes:
    """Label and score of 64 pixels; a broken one cannot be run, whatever it is asked."""
    weights = np.linspace(-1, 1, 640, dtype=np.float32).reshape(64, 10)
    parts = [("w", weights * np.float32(scale)), ("b", np.linspace(0, 1, 10, dtype=np.float32) * np.float32(scale))]
    nodes = [helper.make_node("Gemm", ["input", "w", "b"], ["scores"])]
    last = "scores"
    if broken:
        parts.append(("impossible", np.array([7, 13], dtype=np.int64)))
        nodes.append(helper.make_node("Reshape", ["scores", "impossible"], ["shaped"]))
        last = "shaped"
    nodes.append(helper.make_node("ArgMax", [last], ["label"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 64])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10]),
        ],
        initializer=[numpy_helper.from_array(array, name) for name, array in parts],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def writer(folder: str, models: dict[str, bytes]) -> Manifest:
    """A job that writes model files."""
    texts = {name: base64.b64encode(content).decode() for name, content in models.items()}
    env = [{"name": "FOLDER", "value": folder}, {"name": "MODELS", "value": json.dumps(texts)}]
    spec = {"numWorkers": 1, "image": "headrace/serving:0.1.0", "command": ["python", "-c", WRITE], "env": env}
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "models"},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def folder(kube: Kube) -> str:
    """Where the models are: stable, good (the same figures) and broken."""
    uri = f"s3://headrace/{kube.namespace}/models"
    models = {"stable": model(1), "good": model(1), "broken": model(1, broken=True), "other": model(1.1)}
    kube.apply(writer(uri, {f"{name}.onnx": content for name, content in models.items()}))
    wait_for("the models are written", lambda: is_true(kube.get("trainingjob", "models"), "Succeeded"), seconds=90)
    return uri


def service(folder: str, canary: str | None) -> Manifest:
    """The example, with models that are there and a hurry."""
    made: Manifest
    (made,) = [item for item in yaml.safe_load_all((EXAMPLES / "inferenceservice-canary.yaml").read_text()) if item]
    spec: dict[str, Any] = made["spec"]
    spec["predictor"] |= {"model": {"storageUri": f"{folder}/stable.onnx"}, "minReplicas": 1, "maxReplicas": 1}
    spec["canary"] |= {
        "model": {"storageUri": f"{folder}/{canary}.onnx"},
        "steps": [{"percent": 50, "pause": "1s"}],
        # A busy test machine says nothing about latencies.
        "analysis": {"interval": "2s", "minimumRequests": 30, "maxLatencyIncrease": 10000},
    }
    if canary is None:
        del spec["canary"]
    return made


def shadowed(folder: str) -> Manifest:
    """The example of a shadow, with models that are there; all requests are mirrored."""
    made: Manifest
    (made,) = [item for item in yaml.safe_load_all((EXAMPLES / "inferenceservice-shadow.yaml").read_text()) if item]
    spec: dict[str, Any] = made["spec"]
    spec["predictor"] |= {"model": {"storageUri": f"{folder}/stable.onnx"}, "minReplicas": 1, "maxReplicas": 1}
    spec["shadow"] |= {"model": {"storageUri": f"{folder}/other.onnx"}, "percent": 100}
    return made


def state(kube: Kube) -> Manifest:
    found: Manifest = kube.get("inferenceservice", SERVICE)["status"].get("canary") or {}
    return found


def pods(kube: Kube, component: str) -> set[str]:
    selector = f"app.kubernetes.io/instance={SERVICE},app.kubernetes.io/component={component}"
    return {pod["metadata"]["uid"] for pod in kube.list("pods", selector)}


@pytest.fixture(scope="module")
def running(kube: Kube, folder: str) -> Iterator[None]:
    kube.apply(service(folder, None), shadowed(folder))
    for name in (SERVICE, SHADOWED):
        wait_for(f"{name} is ready", lambda name=name: is_true(kube.get("inferenceservice", name), "Ready"), seconds=90)  # type: ignore[misc]
    yield
    kube.delete("inferenceservice", SERVICE, SHADOWED)


def test_a_canary_that_worsens_errors_is_rolled_back_and_no_client_sees_it(
    kube: Kube, folder: str, running: None
) -> None:
    before = pods(kube, "router") | pods(kube, "predictor")
    with traffic(kube, SERVICE) as report:
        kube.apply(service(folder, "broken"))
        wait_for("it is rolled back", lambda: state(kube).get("phase") == "RolledBack", seconds=60)
        names = {item["metadata"]["name"] for item in kube.list("deployments")}
        assert f"{SERVICE}-canary" not in names, "its pods go"
    assert report.failed == 0, report
    assert report.retries == 0, report
    assert set(report.steps) == {"predictor"}, report
    found = kube.get("inferenceservice", SERVICE)
    assert is_true(found, "Ready")
    promoted = condition(found, "Promoted")
    assert (promoted["status"], promoted["reason"]) == ("False", "RolledBack")
    assert "error rate" in promoted["message"]
    # It answered nothing; once its breaker was open it was not even asked.
    figures = state(kube)["canary"]
    assert (figures["fallbackRate"], figures["errorRate"] > 5) == (100, True), figures
    assert state(kube)["stable"]["errorRate"] == 0
    assert "CanaryRolledBack" in kube.events(SERVICE)
    assert pods(kube, "router") | pods(kube, "predictor") == before, "no pod of the service restarts for a canary"


def test_a_good_canary_is_promoted_and_moving_it_to_the_predictor_restarts_nothing(
    kube: Kube, folder: str, running: None
) -> None:
    with traffic(kube, SERVICE) as report:
        kube.apply(service(folder, "good"))
        wait_for("it is promoted", lambda: state(kube).get("phase") == "Promoted", seconds=90)
        moved = service(folder, None)
        moved["spec"]["predictor"]["model"] = {"storageUri": f"{folder}/good.onnx"}
        before = pods(kube, "predictor")
        kube.apply(moved)
        wait_for("the canary is forgotten", lambda: not state(kube), seconds=30)
        wait_for("the service is ready", lambda: is_true(kube.get("inferenceservice", SERVICE), "Ready"), seconds=30)
    assert report.failed == 0, report
    assert report.retries == 0, report
    assert report.steps.get("canary", 0) > 0, report
    assert set(report.steps) == {"canary", "predictor"}, report
    assert pods(kube, "predictor") == before
    assert {"CanaryStep", "CanaryPromoting", "CanaryPromoted"} <= set(kube.events(SERVICE))


def test_what_a_shadow_answers_otherwise_is_counted_and_no_client_gets_it(kube: Kube, running: None) -> None:
    def summary() -> Manifest:
        found: Manifest = kube.get("inferenceservice", SHADOWED)["status"]["shadow"]
        return found

    with traffic(kube, SHADOWED) as report:
        wait_for("differences are counted", lambda: summary().get("differing", 0) > 10, seconds=60)
    found = summary()
    # For a blank image the scores are the biases, the first of which is 0; all others are a tenth higher.
    assert found["example"] == "output 'scores': 9 of 10 values differ, by up to 0.1", found
    assert (found["errors"], found["differing"]) == (0, found["requests"]), found
    assert report.failed == 0, report
    assert set(report.steps) == {"predictor"}, report
    assert {"ShadowStarted", "ShadowDiffers"} <= set(kube.events(SHADOWED))
