"""LightGBM over several workers: data-parallel tree learning among the addresses that the workers tell each other."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.api.trainingjob import BoostingTrainer
from headrace.training.classic import collective
from headrace.training.classic.rows import Part
from headrace.training.running import Run

OPSET = 15
"""The newest that the converter knows."""
DEFAULT_LEAVES = 31
_OBJECTIVES = {
    "Logistic": ("binary", "binary_logloss"),
    "Softmax": ("multiclass", "multi_logloss"),
    "SquaredError": ("regression", "l2"),
}


@contextmanager
def lightgbm_booster(
    run: Run, trainer: BoostingTrainer, part: Part, classes: int, previous: bytes | None
) -> Iterator[LightGBMBooster]:
    """A booster of all workers, for the time of the block; see `boosting.Booster`."""
    judged = trainer.early_stopping_rounds is not None
    booster = LightGBMBooster(run, parameters(trainer, classes) | _network(run), part, judged, previous)
    try:
        yield booster
    finally:
        booster.leave()


def parameters(trainer: BoostingTrainer, classes: int) -> dict[str, Any]:
    """LightGBM's names and values for the settings."""
    objective, metric = _OBJECTIVES[trainer.objective]
    most = 2**trainer.max_depth if 0 < trainer.max_depth < 17 else 131_072
    return {
        "objective": objective,
        "metric": metric,
        "learning_rate": trainer.learning_rate,
        "max_depth": trainer.max_depth or -1,
        "num_leaves": min(trainer.num_leaves or DEFAULT_LEAVES, most),
        "min_sum_hessian_in_leaf": trainer.min_child_weight,
        "lambda_l2": trainer.l2,
        "bagging_fraction": trainer.subsample,
        "bagging_freq": 1 if trainer.subsample < 1 else 0,
        "feature_fraction": trainer.feature_fraction,
        "max_bin": trainer.max_bins,
        "seed": trainer.seed,
        "num_threads": collective.threads(),
        "verbosity": -1,
        # Otherwise each worker times both ways first and may choose another one.
        "force_row_wise": True,
        **({"num_class": classes} if trainer.objective == "Softmax" else {}),
    }


class LightGBMBooster:
    """Implements `boosting.Booster`.

    Args:
        run: The run.
        settings: Of `parameters`, with those of the network.
        part: This worker's rows.
        judged: The loss of the test rows is wanted after each round.
        previous: A model to go on from, as `content` gives it.
    """

    file_name = "model.txt"

    def __init__(self, run: Run, settings: dict[str, Any], part: Part, judged: bool, previous: bytes | None) -> None:
        import lightgbm

        self._run = run
        self._squared = settings["metric"] == "l2"
        self._objective = settings["objective"]
        self._columns = len(part.columns)
        self._settings = settings
        self._part = part
        self._judged = judged
        self._earlier = lightgbm.Booster(model_str=previous.decode()) if previous else None
        self._booster: Any = self._earlier
        self._judgement: list[Any] = []

    def train(self, rounds: int, after_round: Callable[[], bool]) -> None:
        import lightgbm

        def follow(environment: Any) -> None:
            self._booster = environment.model
            self._judgement = environment.evaluation_result_list
            if after_round():
                raise lightgbm.callback.EarlyStopException(self.rounds() - 1, [])

        settings, part = self._settings, self._part
        train = lightgbm.Dataset(part.train.features, part.train.labels, params=settings, free_raw_data=False)
        test = lightgbm.Dataset(part.test.features, part.test.labels, reference=train, free_raw_data=False)
        self._booster = lightgbm.train(
            settings,
            train,
            num_boost_round=rounds - self.rounds(),
            valid_sets=[test] if self._judged and len(part.test) else [],
            init_model=self._earlier,
            keep_training_booster=True,
            callbacks=[follow],
        )

    def loss(self, test: bool) -> float:
        rows = len(self._part.test if test else self._part.train)
        found = self._judgement if test else self._booster.eval_train() if rows else []
        mine = np.array([found[0][2] * rows if found else 0.0, rows])
        total, count = collective.add(self._run, mine)
        mean = float(total / max(count, 1))
        return math.sqrt(mean) if self._squared else mean

    def rounds(self) -> int:
        return int(self._booster.current_iteration()) if self._booster else 0

    def content(self) -> bytes:
        return bytes(self._booster.model_to_string(num_iteration=-1).encode())

    def keep(self, rounds: int) -> None:
        import lightgbm

        if 0 < rounds < self.rounds():
            self._booster = lightgbm.Booster(model_str=self._booster.model_to_string(num_iteration=rounds))

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        if not len(features):
            classes = self._booster.num_model_per_iteration()
            return np.empty((0, max(2, classes)) if self._objective != "regression" else 0)
        predictions: NDArray[Any] = self._booster.predict(features)
        return np.column_stack([1 - predictions, predictions]) if self._objective == "binary" else predictions

    def to_onnx(self) -> Any:
        from onnxmltools.convert import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        types = [("input", FloatTensorType([None, self._columns]))]
        return convert_lightgbm(self._booster, initial_types=types, target_opset=OPSET, zipmap=False)

    def leave(self) -> None:
        """Close the connections to the other workers."""
        if self._booster:
            self._booster.free_network()


def _network(run: Run) -> dict[str, Any]:
    """Who listens where: each worker takes a free port and tells the others."""
    if run.world_size == 1:
        return {}
    host = collective.own_address(run)
    with socket.socket() as sock:
        sock.bind((host, 0))
        port = sock.getsockname()[1]
    machines = collective.concatenate_bytes(run, f"{host}:{port}".encode())
    return {
        "tree_learner": "data",
        "pre_partition": True,
        "num_machines": run.world_size,
        "machines": ",".join(address.decode() for address in machines),
        "local_listen_port": port,
        # Minutes within which the workers must find each other.
        "time_out": max(1, math.ceil(run.environment.collective_timeout / 60)),
    }
