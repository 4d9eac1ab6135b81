"""The classic algorithms over several workers: boosted trees, forests, matrix factorisation, logistic regression.

Each trainer reads its part of the rows, spreads its work in the way of its algorithm, and ends with the same model
as one worker would. They meet in torch's process group, as every run does; XGBoost and LightGBM then open
connections of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from headrace.api.trainingjob import (
    BoostingTrainer,
    ForestTrainer,
    LogisticRegressionTrainer,
    MatrixFactorizationTrainer,
)

TRAINERS: dict[str, tuple[Any, str]] = {
    "boosting": (BoostingTrainer, "boosting"),
    "forest": (ForestTrainer, "forest"),
    "matrixFactorization": (MatrixFactorizationTrainer, "factorization"),
    "logisticRegression": (LogisticRegressionTrainer, "logistic"),
}
"""Model of the settings and module, by the field of the TrainingJob's spec."""


def train(
    trainer: BoostingTrainer | ForestTrainer | MatrixFactorizationTrainer | LogisticRegressionTrainer,
    storage_uri: str | None = None,
    sink: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Train, evaluate and export; in a job each worker calls it.

    Args:
        trainer: What to train on and how.
        storage_uri: Folder for checkpoints and the model; by default HEADRACE_STORAGE_URI, and without either nothing
            is stored.
        sink: Takes progress reports as JSON lines where the process is not in a pod.

    Returns:
        Test metrics by name on rank 0 (none of them where there are no test rows); empty on the other workers.

    Raises:
        ConfigurationError: the configuration or the data cannot work.
        StorageError: storage cannot be read or written.
        Interrupted: SIGTERM came.
    """
    for model, module in TRAINERS.values():
        if isinstance(trainer, model):
            metrics: dict[str, float] = import_module(f"{__name__}.{module}").train(trainer, storage_uri, sink)
            return metrics
    raise TypeError(f"{type(trainer).__name__} is no trainer of this package")
