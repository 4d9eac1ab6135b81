"""What a finished classifier is worth, and where it goes: test metrics, and the files under `model/`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.storage import Store
from headrace.training.data import Standardization, Table
from headrace.training.export import INPUT, LABEL, PROBABILITIES, Layer, classifier_to_onnx

MODEL_FILE = "model.onnx"
TENSORS_FILE = "model.safetensors"
METRICS_FILE = "metrics.json"
_CHECKED_ROWS = 64
_BATCH = 8192

logger = logging.getLogger(__name__)


def evaluate(model: Any, standardization: Standardization, test: Table, classes: int, device: Any) -> dict[str, float]:
    """Accuracy, macro-averaged precision, recall and F1 (scikit-learn's), and mean cross-entropy on the test rows.

    Empty where there are no test rows. A class that is never predicted counts with precision 0.
    """
    if not len(test.labels):
        return {}
    from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

    probabilities = _probabilities(model, standardization, test, device).astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        test.labels, predicted, labels=range(classes), average="macro", zero_division=0.0
    )
    return {
        "accuracy": float(accuracy_score(test.labels, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "loss": float(log_loss(test.labels, probabilities, labels=range(classes))),
    }


def publish(
    folder: Store,
    model: Any,
    standardization: Standardization,
    test: Table,
    metrics: Mapping[str, float],
    facts: Mapping[str, Any],
) -> str:
    """Write the model and its metrics into `folder`, model.onnx last.

    Args:
        folder: The run's `model/` folder.
        model: The trained network.
        standardization: What is done to its inputs.
        test: Rows on which the exported model is compared with the trained one before it is written.
        metrics: Of `evaluate`.
        facts: What else metrics.json says about the run.

    Returns:
        URI of model.onnx.

    Raises:
        RuntimeError: the exported model does not compute what the trained one does.
        StorageError: it could not be written.
    """
    import torch
    from safetensors.torch import save

    linear = [module for module in model if isinstance(module, torch.nn.Linear)]
    layers = [Layer(m.weight.detach().cpu().numpy(), m.bias.detach().cpu().numpy()) for m in linear]
    onnx_bytes = classifier_to_onnx(
        standardization.mean,
        standardization.scale,
        layers,
        {"features": json.dumps(facts["features"]), **{name: f"{value:.6g}" for name, value in metrics.items()}},
    )
    _compare(onnx_bytes, model, standardization, test)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    tensors["standardization.mean"] = torch.from_numpy(standardization.mean)
    tensors["standardization.scale"] = torch.from_numpy(standardization.scale)
    folder.write_bytes(TENSORS_FILE, save(tensors, {"trainer": json.dumps(facts["trainer"])}))
    folder.write_bytes(METRICS_FILE, json.dumps({"metrics": dict(metrics), **facts}, indent=1).encode())
    folder.write_bytes(MODEL_FILE, onnx_bytes)
    return folder.uri_of(MODEL_FILE)


def _probabilities(model: Any, standardization: Standardization, rows: Table, device: Any) -> Any:
    import torch

    with torch.no_grad():
        parts = [
            torch.softmax(model(torch.from_numpy(standardization.apply(part)).to(device)), dim=1).cpu().numpy()
            for part in np.array_split(rows.features, max(1, len(rows.labels) // _BATCH))
        ]
    return np.concatenate(parts)


def _compare(onnx_bytes: bytes, model: Any, standardization: Standardization, test: Table) -> None:
    """Run the exported graph in ONNX's reference implementation on a few rows."""
    from onnx.reference import ReferenceEvaluator

    rows = Table(test.features[:_CHECKED_ROWS], test.labels[:_CHECKED_ROWS], test.columns)
    if not len(rows.labels):
        return
    expected = _probabilities(model, standardization, rows, next(model.parameters()).device)
    label, probabilities = ReferenceEvaluator(onnx_bytes).run([LABEL, PROBABILITIES], {INPUT: rows.features})
    if not np.allclose(probabilities, expected, atol=1e-3) or np.mean(label == expected.argmax(axis=1)) < 0.98:
        worst = float(np.abs(probabilities - expected).max())
        raise RuntimeError(f"the exported ONNX model differs from the trained one by {worst:.2g} in a probability")
