"""Multinomial logistic regression: each worker computes loss and gradient of its rows, their sums move rank 0's L-BFGS.

The loss is scikit-learn's: the summed cross-entropy plus l2/2 times the squared coefficients (not the intercepts),
with one vector of coefficients for two classes and one per class for more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.api.trainingjob import LogisticRegressionTrainer
from headrace.storage import patiently
from headrace.training.classic import collective, results
from headrace.training.classic.rows import Part, Rows, fingerprint, load, require_classes
from headrace.training.classic.snapshot import Snapshot
from headrace.training.environment import Environment
from headrace.training.errors import Interrupted
from headrace.training.export import Layer, classifier_to_onnx
from headrace.training.process_group import broadcast_bytes
from headrace.training.running import Run, session

LOG_EVERY = 2.0
"""Least seconds between two lines of progress in the log."""
MODEL_FILE = "model.safetensors"
_MOST_LINE_SEARCH = 50
_EVALUATE, _STEP, _END = b"e", b"s", b"x"
"""What rank 0 tells the others to do with the place that follows."""

logger = logging.getLogger(__name__)

Vector = NDArray[np.float64]


def train(
    trainer: LogisticRegressionTrainer, storage_uri: str | None = None, sink: Callable[[str], None] | None = None
) -> dict[str, float]:
    """See `headrace.training.classic.train`."""
    told = Environment.read()
    part = patiently(lambda: load(trainer.dataset, trainer.seed, told.rank, told.world_size))
    with session(storage_uri, sink, told) as run:
        labels = np.concatenate([part.train.labels, part.test.labels])
        classes = max(1, collective.largest(run, int(labels.max(initial=0))) + 1)
        counts = collective.add(run, np.bincount(np.maximum(part.train.labels, 0).astype(np.int64), minlength=classes))
        require_classes(labels, counts)
        scale = Scale.of(run, part.train.features, trainer.standardize)
        problem = Problem(scale.apply(part.train.features), part.train.labels.astype(np.int64), classes, trainer.l2)
        weights = _minimize(run, trainer, part, problem, int(counts.sum()))
        return _finish(run, trainer, part, scale, problem, weights)


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and population standard deviation of each column over all workers; 0 and 1 where nothing is to be done."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, run: Run, features: NDArray[np.float32], wanted: bool) -> Scale:
        """Every worker must call it; two passes, for a variance that is a difference of sums has no digits left."""
        columns = features.shape[1]
        if not wanted:
            return cls(np.zeros(columns, np.float32), np.ones(columns, np.float32))
        sums = np.append(features.sum(axis=0, dtype=np.float64), len(features))
        sums = collective.add(run, sums)
        mean = sums[:-1] / sums[-1]
        squares = collective.add(run, np.square(features - mean).sum(axis=0))
        deviation = np.sqrt(squares / sums[-1])
        return cls(mean.astype(np.float32), np.where(deviation > 0, deviation, 1.0).astype(np.float32))

    def apply(self, features: NDArray[np.float32]) -> Vector:
        """In float32 as the exported model does it, then as float64 for the sums."""
        return ((features - self.mean) / self.deviation).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Problem:
    """One worker's part of the loss.

    Attributes:
        inputs: Shape (rows, columns).
        labels: Classes, shape (rows,).
        classes: Number of classes K.
        l2: Penalty.
    """

    inputs: Vector
    labels: NDArray[np.int64]
    classes: int
    l2: float

    @property
    def vectors(self) -> int:
        """Vectors of coefficients: 1 for two classes."""
        return 1 if self.classes == 2 else self.classes

    @property
    def size(self) -> int:
        """Coefficients and intercepts in all."""
        return self.vectors * (int(self.inputs.shape[1]) + 1)

    def loss(self, weights: Vector) -> Vector:
        """Summed cross-entropy of these rows at position 0, its gradient after it; the penalty is not in it."""
        coefficients, intercepts = self.split(weights)
        logits = self.inputs @ coefficients.T + intercepts
        if self.classes == 2:
            signed = np.where(self.labels == 1, 1.0, -1.0)
            margins = signed * logits[:, 0]
            loss = np.logaddexp(0, -margins).sum()
            slopes = (-signed / (1 + np.exp(np.minimum(margins, 700))))[:, None]
        else:
            logits -= logits.max(axis=1, keepdims=True)
            slopes = np.exp(logits)
            sums = slopes.sum(axis=1, keepdims=True)
            rows = np.arange(len(self.labels))
            loss = (np.log(sums[:, 0]) - logits[rows, self.labels]).sum()
            slopes /= sums
            slopes[rows, self.labels] -= 1
        gradient = np.hstack([slopes.T @ self.inputs, slopes.sum(axis=0)[:, None]])
        return np.append(loss, gradient.ravel())

    def split(self, weights: Vector) -> tuple[Vector, Vector]:
        """Coefficients, shape (vectors, columns), and intercepts, shape (vectors,)."""
        table = weights.reshape(self.vectors, -1)
        return table[:, :-1], table[:, -1]

    def penalized(self, summed: Vector, weights: Vector, rows: int) -> tuple[float, Vector]:
        """Mean loss and gradient over all rows, with the penalty, from the workers' sum of `loss`."""
        table = weights.reshape(self.vectors, -1).copy()
        table[:, -1] = 0
        loss = (summed[0] + 0.5 * self.l2 * np.square(table).sum()) / rows
        return float(loss), (summed[1:] + self.l2 * table.ravel()) / rows


def _minimize(run: Run, trainer: LogisticRegressionTrainer, part: Part, problem: Problem, rows: int) -> Vector:
    """The coefficients, the same on every worker. Rank 0 chooses where to look next, so that workers whose processors
    round differently cannot part ways."""
    snapshot = Snapshot(weights=np.zeros(problem.size))
    mark = fingerprint(trainer.model_dump(mode="json", exclude={"max_iterations", "tolerance"}), part)
    state = run.checkpoints.restore({"weights": snapshot}, mark)
    weights = snapshot.arrays["weights"]
    done = state["step"] if state else 0
    run.report(step=done, steps=trainer.max_iterations)
    if run.rank == 0:
        if done < trainer.max_iterations:
            weights = _lead(run, trainer, problem, weights, done, rows)
        broadcast_bytes(_END + weights.tobytes(), run.device)
        return weights
    while True:
        told = broadcast_bytes(None, run.device)
        order, place = told[:1], np.frombuffer(told[1:])
        if order == _END:
            return place
        if order == _EVALUATE:
            collective.add(run, problem.loss(place))
        else:
            done += 1
            _after_step(run, done, place, len(part.train))


def _after_step(run: Run, done: int, place: Vector, rows: int, loss: float | None = None) -> None:
    """What every worker does after a step of L-BFGS."""
    run.report(step=done, loss=loss, samples=rows)
    if run.checkpoints.due():
        run.checkpoints.save(done, {"weights": Snapshot(weights=place.copy())})
    if run.must_stop:
        raise Interrupted


def _lead(
    run: Run, trainer: LogisticRegressionTrainer, problem: Problem, start: Vector, done: int, rows: int
) -> Vector:
    from scipy.optimize import minimize

    steps = done
    last_log = time.monotonic()
    mean_loss = 0.0

    def evaluate(place: Vector) -> tuple[float, Vector]:
        nonlocal mean_loss
        broadcast_bytes(_EVALUATE + place.tobytes(), run.device)
        mean_loss, gradient = problem.penalized(collective.add(run, problem.loss(place)), place, rows)
        return mean_loss, gradient

    def after_step(place: Vector) -> None:
        nonlocal steps, last_log
        steps += 1
        broadcast_bytes(_STEP + place.tobytes(), run.device)
        _after_step(run, steps, place, len(problem.labels), mean_loss)
        if time.monotonic() - last_log >= LOG_EVERY:
            last_log = time.monotonic()
            logger.info("iteration %d, loss %.6g", steps, mean_loss)

    found = minimize(
        evaluate,
        start,
        jac=True,
        method="L-BFGS-B",
        callback=after_step,
        options={
            "maxiter": trainer.max_iterations - done,
            "gtol": trainer.tolerance,
            "ftol": 64 * np.finfo(np.float64).eps,
            "maxls": _MOST_LINE_SEARCH,
        },
    )
    logger.info("%d iterations, loss %.6g: %s", steps, found.fun, found.message)
    run.report(step=steps, steps=max(1, steps))
    return np.asarray(found.x, np.float64)


def _probabilities(problem: Problem, scale: Scale, rows: Rows, weights: Vector) -> Vector:
    coefficients, intercepts = problem.split(weights)
    logits = scale.apply(rows.features) @ coefficients.T + intercepts
    if problem.classes == 2:
        logits = np.hstack([np.zeros_like(logits), logits])
    logits -= logits.max(axis=1, keepdims=True, initial=-np.inf)
    numerators = np.exp(logits)
    probabilities: Vector = numerators / numerators.sum(axis=1, keepdims=True)
    return probabilities


def _finish(
    run: Run, trainer: LogisticRegressionTrainer, part: Part, scale: Scale, problem: Problem, weights: Vector
) -> dict[str, float]:
    import onnx
    from safetensors.numpy import save

    probabilities = _probabilities(problem, scale, part.test, weights)
    metrics = results.classification_metrics(run, part.test.labels, probabilities, problem.classes)
    if run.rank != 0:
        return {}
    coefficients, intercepts = problem.split(weights)
    tensors: dict[str, Any] = {
        "coefficients": np.ascontiguousarray(coefficients),
        "intercepts": np.ascontiguousarray(intercepts),
        "standardization.mean": scale.mean,
        "standardization.scale": scale.deviation,
    }
    if problem.classes == 2:  # Softmax over 0 and the logit is the logistic function.
        coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
        intercepts = np.append(0.0, intercepts)
    layer = Layer(coefficients.astype(np.float32), intercepts.astype(np.float32))
    metadata = {name: f"{value:.6g}" for name, value in metrics.items()}
    model = onnx.load_from_string(classifier_to_onnx(scale.mean, scale.deviation, [layer]))
    rows = part.test.features[: results.CHECKED_ROWS]
    content = results.checked_onnx(model, rows, probabilities[: len(rows)], metadata)
    facts = {"rows": part.total, "classes": problem.classes, "features": list(part.columns)}
    results.publish(run, trainer, {MODEL_FILE: save(tensors), results.ONNX_FILE: content}, metrics, facts, part)
    return metrics
