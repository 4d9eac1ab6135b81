"""XGBoost over several workers: its tracker runs in rank 0, and the workers find it through torch's process group."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.api.trainingjob import BoostingTrainer
from headrace.training.classic import collective
from headrace.training.classic.rows import Part, Rows
from headrace.training.process_group import broadcast_bytes
from headrace.training.running import Run

OPSET = 15
"""The newest that the converter knows."""
_OBJECTIVES = {
    "Logistic": ("binary:logistic", "logloss"),
    "Softmax": ("multi:softprob", "mlogloss"),
    "SquaredError": ("reg:squarederror", "rmse"),
}


@contextmanager
def xgboost_booster(
    run: Run, trainer: BoostingTrainer, part: Part, classes: int, previous: bytes | None
) -> Iterator[XGBoostBooster]:
    """A booster of all workers, for the time of the block; see `boosting.Booster`."""
    with _communicator(run):
        yield XGBoostBooster(parameters(trainer, classes), part, previous)


def parameters(trainer: BoostingTrainer, classes: int) -> dict[str, Any]:
    """XGBoost's names and values for the settings."""
    objective, metric = _OBJECTIVES[trainer.objective]
    leaves = {"grow_policy": "lossguide", "max_leaves": trainer.num_leaves} if trainer.num_leaves else {}
    return {
        "objective": objective,
        "eval_metric": metric,
        "tree_method": "hist",
        "eta": trainer.learning_rate,
        "max_depth": trainer.max_depth,
        "min_child_weight": trainer.min_child_weight,
        "lambda": trainer.l2,
        "subsample": trainer.subsample,
        "colsample_bytree": trainer.feature_fraction,
        "max_bin": trainer.max_bins,
        "seed": trainer.seed,
        "nthread": collective.threads(),
        "verbosity": 1,
        **leaves,
        **({"num_class": classes} if trainer.objective == "Softmax" else {}),
    }


class XGBoostBooster:
    """Implements `boosting.Booster`.

    Args:
        settings: Of `parameters`.
        part: This worker's rows.
        previous: A model to go on from, as `content` gives it.
    """

    file_name = "model.ubj"

    def __init__(self, settings: dict[str, Any], part: Part, previous: bytes | None) -> None:
        import xgboost

        self._columns = len(part.columns)
        self._train = self._matrix(part.train, settings)
        self._test = self._matrix(part.test, settings, self._train)
        self._booster = xgboost.Booster(
            settings, [self._train, self._test], model_file=bytearray(previous) if previous else None
        )

    def train(self, rounds: int, after_round: Callable[[], bool]) -> None:
        for done in range(self.rounds(), rounds):
            self._booster.update(self._train, iteration=done)
            if after_round():
                return

    def loss(self, test: bool) -> float:
        text = self._booster.eval_set([(self._test if test else self._train, "rows")])
        return float(text.rpartition(":")[2])

    def rounds(self) -> int:
        return int(self._booster.num_boosted_rounds())

    def content(self) -> bytes:
        return bytes(self._booster.save_raw("ubj"))

    def keep(self, rounds: int) -> None:
        if 0 < rounds < self.rounds():
            self._booster = self._booster[:rounds]

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        predictions: NDArray[Any] = self._booster.inplace_predict(features)
        objective = json.loads(self._booster.save_config())["learner"]["objective"]["name"]
        return np.column_stack([1 - predictions, predictions]) if objective == "binary:logistic" else predictions

    def to_onnx(self) -> Any:
        from onnxmltools.convert import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType

        return convert_xgboost(
            self._booster, initial_types=[("input", FloatTensorType([None, self._columns]))], target_opset=OPSET
        )

    @staticmethod
    def _matrix(rows: Rows, settings: dict[str, Any], reference: Any = None) -> Any:
        import xgboost

        return xgboost.QuantileDMatrix(
            rows.features, rows.labels, max_bin=settings["max_bin"], nthread=settings["nthread"], ref=reference
        )


@contextmanager
def _communicator(run: Run) -> Iterator[None]:
    """XGBoost's collectives among the workers of the run."""
    if run.world_size == 1:
        yield
        return
    from xgboost.collective import CommunicatorContext
    from xgboost.tracker import RabitTracker

    tracker = None
    if run.rank == 0:
        master = run.environment.master
        host = socket.gethostbyname(master[0]) if master else "127.0.0.1"
        tracker = RabitTracker(n_workers=run.world_size, host_ip=host, sortby="task")
        tracker.start()
        broadcast_bytes(json.dumps(tracker.worker_args()).encode(), run.device)
        arguments = tracker.worker_args()
    else:
        arguments = json.loads(broadcast_bytes(None, run.device))
    timeout = int(run.environment.collective_timeout)
    with CommunicatorContext(**arguments, dmlc_task_id=f"{run.rank:05d}", dmlc_timeout=timeout):
        yield
    if tracker is not None:
        tracker.wait_for(timeout=timeout)
