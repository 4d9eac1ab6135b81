"""Models that are not ONNX on the cluster: the example's forest by its job, its Python class, and a wrong model."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.datasets import load_digits

from cluster.kubectl import Kube, condition, is_true, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "inferenceservice-models.yaml"
IMAGES, LABELS = load_digits(return_X_y=True)


def ask(port: int, name: str, tensor: str, values: Any) -> tuple[int, dict[str, Any]]:
    body = {
        "inputs": [{"name": tensor, "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}]
    }
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/{name}/infer", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def ready(kube: Kube, name: str) -> bool:
    return is_true(kube.get("inferenceservice", name), "Ready")


def test_a_forest_by_its_job_and_a_class_of_ones_own(kube: Kube) -> None:
    kube.apply(*yaml.safe_load_all(EXAMPLE.read_text()))
    waiting = wait_for(
        "the service says what it waits for",
        lambda: (
            (condition(kube.get("inferenceservice", "forest"), "Ready") or {}).get("reason") == "WaitingForTrainingJob"
        ),
        seconds=30,
    )
    assert waiting
    wait_for("the Python class answers", lambda: ready(kube, "ink"), seconds=120)
    wait_for("the forest answers", lambda: ready(kube, "forest"), seconds=180)
    status = kube.get("inferenceservice", "forest")["status"]
    (pin,) = status["models"]
    assert pin["trainingJob"] == "forest"
    assert pin["uri"].endswith(f"/{kube.namespace}/forest/model")
    assert status["predictor"]["summary"] == "0/0"
    assert not [item for item in kube.list("deployments") if item["metadata"]["name"] == "forest-predictor"]

    with kube.forward("service/forest", 80) as port:
        code, answer = ask(port, "forest", "input", IMAGES[:200])
        assert code == 200
        outputs = {item["name"]: item for item in answer["outputs"]}
        assert (np.array(outputs["label"]["data"]) == LABELS[:200]).mean() > 0.95
        assert outputs["probabilities"]["shape"] == [200, 10]
    with kube.forward("service/ink", 80) as port:
        code, answer = ask(port, "ink", "image", IMAGES[:3])
        assert code == 200
        ink, half = (item["data"] for item in answer["outputs"])
        np.testing.assert_allclose(ink, IMAGES[:3].sum(axis=1))
        assert set(half) <= {"upper", "lower"}
        assert ask(port, "ink", "image", -IMAGES[:1]) == (400, {"error": "input 'image': ink is not negative"})


def test_a_file_of_another_format_is_named_in_the_condition(kube: Kube) -> None:
    wrong = {
        "spec": {"predictor": {"model": {"modelFormat": "PMML", "code": None, "trainingJobRef": {"name": "forest"}}}}
    }
    kube.run("patch", "inferenceservice", "ink", "--type=merge", f"--patch={json.dumps(wrong)}")

    def said() -> str | None:
        found = condition(kube.get("inferenceservice", "ink"), "PredictorReady") or {}
        return str(found["message"]) if found.get("reason") == "ModelLoadFailed" else None

    message = wait_for("the condition says what is wrong", said, seconds=120)
    assert "the folder has no model.pmml and no model.xml (it has card.json" in message
    assert "Correct predictor.model" in message
