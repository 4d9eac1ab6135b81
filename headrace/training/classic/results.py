"""What a finished model is worth on the test rows, and where it goes: metrics, and the files under `model/`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.api.schema import Model
from headrace.drift import profile
from headrace.training.classic import collective
from headrace.training.classic.rows import Part
from headrace.training.model_card import data_version_or_why
from headrace.training.running import Run

METRICS_FILE = "metrics.json"
ONNX_FILE = "model.onnx"
CHECKED_ROWS = 64

logger = logging.getLogger(__name__)


def classification_metrics(
    run: Run, labels: NDArray[np.float64], probabilities: NDArray[Any], classes: int
) -> dict[str, float]:
    """Of all workers' test rows: accuracy, macro-averaged precision, recall and F1, mean cross-entropy, and the area
    under the ROC curve where there are two classes. All by scikit-learn. Empty without test rows.

    Args:
        run: The run.
        labels: Classes of this worker's test rows.
        probabilities: Shape (rows, classes).
        classes: Number of classes.
    """
    everyone = collective.concatenate(run, probabilities.astype(np.float64).reshape(-1, classes))
    return score_classes(collective.concatenate(run, labels), everyone, classes)


def score_classes(labels: NDArray[np.float64], probabilities: NDArray[np.float64], classes: int) -> dict[str, float]:
    """`classification_metrics` of the given rows alone."""
    if not len(labels):
        return {}
    from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support, roc_auc_score

    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=range(classes), average="macro", zero_division=0.0
    )
    metrics = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "loss": float(log_loss(labels, probabilities, labels=range(classes))),
    }
    if classes == 2 and len(np.unique(labels)) == 2:
        metrics["auc"] = float(roc_auc_score(labels, probabilities[:, 1]))
    return metrics


def regression_metrics(run: Run, labels: NDArray[Any], predictions: NDArray[Any]) -> dict[str, float]:
    """Of all workers' test rows: root mean squared error, mean absolute error, and R2. Empty without test rows."""
    labels = labels.astype(np.float64)
    errors = predictions.astype(np.float64) - labels
    parts = np.array([len(labels), (errors**2).sum(), np.abs(errors).sum(), labels.sum(), (labels**2).sum()])
    count, squares, absolute, total, total_squares = collective.add(run, parts)
    if not count:
        return {}
    spread = total_squares - total**2 / count
    metrics = {"rmse": float(np.sqrt(squares / count)), "mae": float(absolute / count)}
    if spread > 0:
        metrics["r2"] = float(1 - squares / spread)
    return metrics


def publish(
    run: Run,
    trainer: Model,
    files: Mapping[str, bytes],
    metrics: Mapping[str, float],
    facts: Mapping[str, Any],
    part: Part | None = None,
) -> None:
    """Rank 0 writes the model and its metrics and reports both; the last of `files` is the model and is written last.

    Raises:
        GateNotMet: the model is not good enough for spec.evaluation.
        StorageError: it could not be written.
    """
    if run.rank != 0:
        return
    about = {
        "metrics": dict(metrics),
        "workers": run.world_size,
        "attempt": run.environment.attempt,
        "trainer": trainer.manifest(),
        **facts,
    }
    run.publish(
        {METRICS_FILE: json.dumps(about, indent=1).encode(), **files},
        metrics,
        trainer.manifest(),
        data=_data(trainer, facts),
        **({"profile": profile(part.columns, part.train.features)} if part is not None else {}),
    )
    if metrics:
        logger.info("test metrics: %s", ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def _data(trainer: Model, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was trained on, for the model's card."""
    uri = getattr(getattr(trainer, "dataset", None), "uri", None)
    rows = {name: facts[name] for name in ("trainRows", "testRows") if name in facts}
    return {**(data_version_or_why(uri) if uri else {}), **rows}


def checked_onnx(
    model: Any, features: NDArray[np.float32], expected: NDArray[Any], metadata: Mapping[str, str]
) -> bytes:
    """The ONNX model after a look at it: its reference implementation computes what the trained model does.

    Args:
        model: The ModelProto.
        features: A few rows, shape (rows, columns).
        expected: Probabilities or predictions for them: the model's last output.
        metadata: Kept in the model's metadata_props.

    Raises:
        RuntimeError: it computes something else.
    """
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    for output in model.graph.output:
        # Converters write 1 here where they mean any number of rows.
        if output.type.tensor_type.shape.dim:
            output.type.tensor_type.shape.dim[0].dim_param = "batch"
    helper.set_model_props(model, dict(metadata))
    content = bytes(model.SerializeToString())
    if not len(features):
        return content
    found = np.asarray(ReferenceEvaluator(model).run(None, {model.graph.input[0].name: features})[-1])
    expected = expected.reshape(found.shape)
    scale = max(1.0, float(np.abs(expected).max()))
    # A row whose feature is within rounding of a threshold may take another branch in 32 bits.
    wrong = (np.abs(found - expected) > 1e-4 * scale).reshape(len(features), -1).any(axis=1).mean()
    if wrong > 0.05:
        worst = float(np.abs(found - expected).max())
        raise RuntimeError(f"the exported ONNX model differs from the trained one by {worst:.2g} in a prediction")
    return content
