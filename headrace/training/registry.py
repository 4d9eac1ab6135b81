"""A finished run in an MLflow registry: parameters, metrics and artifacts, and a version of the registered model."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.api.trainingjob import Registry
from headrace.mlflow import Client, Point

logger = logging.getLogger(__name__)

ARTIFACTS = "model"


@dataclass(frozen=True, slots=True)
class Registered:
    """What came of it."""

    model: str
    version: str
    run_id: str
    url: str


def register(
    registry: Registry,
    job: str,
    files: Mapping[str, bytes],
    model_uri: str,
    card: Mapping[str, Any],
    curve: Sequence[Point],
    client: Client | None = None,
) -> Registered:
    """Log the run and register its model.

    Args:
        registry: Where, and under which name.
        job: Name of the job.
        files: The model's files by name; they become the artifacts.
        model_uri: The model in storage.
        card: Its card.
        curve: Metrics while training went on.
        client: The server.

    Raises:
        RegistryError: the server refused or did not answer.
    """
    client = client or Client(registry.tracking_uri)
    origin = card["run"]
    experiment = client.experiment(registry.experiment or job or registry.model)
    run_id, artifacts = client.start(experiment, job or registry.model, _tags(origin, model_uri), time.time())
    now = time.time()
    last = max((point.step for point in curve), default=0)
    final = [Point(name, value, last, now) for name, value in card["metrics"].items()]
    client.log(run_id, dict(_flat(card["parameters"])), [*curve, *final])
    source = model_uri.rpartition("/")[0]
    if artifacts.startswith("mlflow-artifacts:"):
        for name, content in {**files, "MLmodel": _mlmodel(files, card, run_id)}.items():
            client.upload(artifacts, f"{ARTIFACTS}/{name}", content)
        source = f"{artifacts}/{ARTIFACTS}"
    client.end(run_id)
    number = client.register(registry.model, source, run_id, registry.alias)
    logger.info("registered as version %s of %s", number, registry.model)
    return Registered(registry.model, number, run_id, client.page(registry.model, number))


def _tags(origin: Mapping[str, Any], model_uri: str) -> dict[str, str]:
    names = {"gitCommit": "mlflow.source.git.commit", "image": "headrace.image", "imageDigest": "headrace.imageDigest"}
    found = {"headrace.modelUri": model_uri, "mlflow.source.type": "JOB"}
    for name, value in origin.items():
        if isinstance(value, str | int | float):
            found[names.get(name, f"headrace.{name}")] = str(value)
    return found


def _mlmodel(files: Mapping[str, bytes], card: Mapping[str, Any], run_id: str) -> bytes:
    """MLflow's description of the model; JSON is YAML. An ONNX model can be loaded by mlflow.onnx and mlflow.pyfunc."""
    described: dict[str, Any] = {
        "artifact_path": ARTIFACTS,
        "run_id": run_id,
        "utc_time_created": _utc(),
        "flavors": {},
    }
    onnx = next((name for name in files if name.endswith(".onnx")), None)
    if onnx is not None:
        versions = card["run"].get("versions", {})
        described["flavors"] = {
            "onnx": {"data": onnx, "onnx_version": versions.get("onnx", ""), "providers": ["CPUExecutionProvider"]},
            "python_function": {"data": onnx, "loader_module": "mlflow.onnx"},
        }
        shapes = card.get("signature")
        if shapes:
            described["signature"] = {
                name: json.dumps([_tensor(item) for item in shapes[name]]) for name in ("inputs", "outputs")
            }
    return json.dumps(described, indent=1).encode()


def _tensor(item: Mapping[str, Any]) -> dict[str, Any]:
    shape = item["shape"] or [-1]
    return {"name": item["name"], "type": "tensor", "tensor-spec": {"dtype": item["dtype"], "shape": shape}}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as parameters: `dataset.testFraction`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _utc() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
