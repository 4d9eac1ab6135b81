"""The classic trainers on the cluster: the jobs of the examples, all at the same time, in two zones each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"
WRITE_RATINGS = """
import io, os
import numpy as np, pyarrow as pa
from pyarrow import parquet
from headrace.storage import Store
random = np.random.default_rng(0)
users, items = random.integers(0, 200, 8000), random.integers(0, 100, 8000)
taste = random.normal(size=(200, 3)), random.normal(size=(100, 3))
ratings = 3 + (taste[0][users] * taste[1][items]).sum(axis=1) + random.normal(size=8000) * 0.1
buffer = io.BytesIO()
parquet.write_table(pa.table({"user": users, "item": items, "rating": ratings}), buffer, row_group_size=1000)
Store.open(os.environ["RATINGS"]).write_bytes("part-0.parquet", buffer.getvalue())
"""


def jobs(name: str) -> list[Manifest]:
    return [item for item in yaml.safe_load_all((EXAMPLES / name).read_text()) if item]


def ratings_writer(uri: str) -> Manifest:
    """A job that puts ratings with three hidden factors into storage."""
    spec: dict[str, Any] = {
        "image": "headrace/trainer:0.1.0",
        "command": ["python", "-c", WRITE_RATINGS],
        "env": [{"name": "RATINGS", "value": uri}],
    }
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "ratings"},
        "spec": {"numWorkers": 1, **spec},
    }


def finished(kube: Kube, name: str) -> Manifest | None:
    job = kube.get("trainingjob", name)
    assert not is_true(job, "Failed"), condition(job, "Failed")["message"]
    return job if is_true(job, "Succeeded") else None


def test_every_classic_trainer_ends_with_a_good_model(kube: Kube) -> None:
    (recommendations,) = jobs("trainingjob-recommendations.yaml")
    uri = f"s3://headrace/{kube.namespace}/ratings-data"
    recommendations["spec"]["matrixFactorization"] |= {"uri": uri, "factors": 4}
    classic = jobs("trainingjob-classic.yaml")
    kube.apply(ratings_writer(uri), *classic)
    wait_for("the ratings are written", lambda: finished(kube, "ratings"), seconds=120)
    kube.apply(recommendations)
    ended = {}
    for job in (*classic, recommendations):
        name = job["metadata"]["name"]
        ended[name] = wait_for(f"{name} ends", lambda name=name: finished(kube, name), seconds=180)  # type: ignore[misc]
    for name, job in ended.items():
        status = job["status"]
        assert len({place["zone"] for place in status["placement"]}) == 2, name
        metrics = {key: float(value) for key, value in status["metrics"].items()}
        if name == "recommendations":
            # The ratings' own noise has a deviation of 0.1, and their spread is 1.7.
            assert metrics["rmse"] < 0.5, metrics
            assert status["modelUri"].endswith("model.safetensors")
        else:
            assert metrics["accuracy"] > 0.93, (name, metrics)
            assert status["modelUri"].endswith("model.onnx")
    assert ended["digits-xgboost"]["status"]["progress"]["step"] > 0
