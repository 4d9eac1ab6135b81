"""What a finished classifier is worth, and where it goes: test metrics, and the files under `model/`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.training.data import Standardization, Table
from headrace.training.export import INPUT, LABEL, PROBABILITIES, Layer, classifier_to_onnx

MODEL_FILE = "model.onnx"
TENSORS_FILE = "model.safetensors"
METRICS_FILE = "metrics.json"
_CHECKED_ROWS = 64
_BATCH = 8192


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a classifier is worth on the test rows.

    Attributes:
        metrics: Accuracy, macro-averaged precision, recall, F1 and AUC, mean cross-entropy; empty without test rows.
        classes: Precision, recall, F1, AUC (one class against the rest) and rows of each class.
    """

    metrics: dict[str, float]
    classes: list[dict[str, float]]


def evaluate(model: Any, standardization: Standardization, test: Table, classes: int, device: Any) -> Evaluated:
    """Judge a classifier by the test rows."""
    if not len(test.labels):
        return Evaluated({}, [])
    return score(test.labels, _probabilities(model, standardization, test, device), classes)


def score(labels: Any, probabilities: Any, classes: int) -> Evaluated:
    """Figures of predicted probabilities, all by scikit-learn.

    A class that is never predicted counts with precision 0. AUC is left out for a class without rows, or with all of
    them, and macro-averaged where every class has one; of two classes it is that of class 1.

    Args:
        labels: Shape (rows,).
        probabilities: Shape (rows, classes).
        classes: Number of classes.
    """
    from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support, roc_auc_score

    probabilities = np.asarray(probabilities, np.float64)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, rows = precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=0.0
    )
    each: list[dict[str, float]] = []
    for number in range(classes):
        figures = {
            "class": number,
            "precision": float(precision[number]),
            "recall": float(recall[number]),
            "f1": float(f1[number]),
            "rows": int(rows[number]),
        }
        if 0 < rows[number] < len(labels):
            figures["auc"] = float(roc_auc_score(labels == number, probabilities[:, number]))
        each.append(figures)
    metrics = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "precision": float(np.mean(precision)),
        "recall": float(np.mean(recall)),
        "f1": float(np.mean(f1)),
        "loss": float(log_loss(labels, probabilities, labels=range(classes))),
    }
    if all("auc" in figures for figures in each):
        metrics["auc"] = each[1]["auc"] if classes == 2 else float(np.mean([figures["auc"] for figures in each]))
    return Evaluated(metrics, each)


def model_files(
    model: Any, standardization: Standardization, test: Table, evaluated: Evaluated, facts: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files of the trained model by name, model.onnx last.

    Args:
        model: The trained network.
        standardization: What is done to its inputs.
        test: Rows on which the exported model is compared with the trained one.
        evaluated: Of `evaluate`.
        facts: What else metrics.json says about the run.

    Raises:
        RuntimeError: the exported model does not compute what the trained one does.
    """
    import torch
    from safetensors.torch import save

    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    layers = [Layer(m.weight.detach().cpu().numpy(), m.bias.detach().cpu().numpy()) for m in linear]
    onnx_bytes = classifier_to_onnx(
        standardization.mean,
        standardization.scale,
        layers,
        {"features": json.dumps(facts["features"]), **{n: f"{value:.6g}" for n, value in evaluated.metrics.items()}},
    )
    _compare(onnx_bytes, model, standardization, test)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    tensors["standardization.mean"] = torch.from_numpy(standardization.mean)
    tensors["standardization.scale"] = torch.from_numpy(standardization.scale)
    return {
        TENSORS_FILE: save(tensors, {"trainer": json.dumps(facts["trainer"])}),
        METRICS_FILE: json.dumps({"metrics": evaluated.metrics, **facts}, indent=1).encode(),
        MODEL_FILE: onnx_bytes,
    }


def transform_digest(standardization: Standardization) -> str:
    """SHA-256 of the feature transform: two models with the same one may be fed the same rows."""
    content = standardization.mean.tobytes() + standardization.scale.tobytes()
    return hashlib.sha256(content).hexdigest()


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
