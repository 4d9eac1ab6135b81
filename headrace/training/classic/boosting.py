"""Gradient boosted trees: XGBoost or LightGBM, each worker with its part of the rows.

The libraries add up gradient histograms over the workers, so every worker builds the same trees; rank 0 stores them.
A checkpoint is the model so far; a restart goes on from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.api.trainingjob import BoostingTrainer
from headrace.storage import patiently
from headrace.training.classic import collective, results
from headrace.training.classic.rows import Part, fingerprint, load, require_classes
from headrace.training.classic.snapshot import Snapshot
from headrace.training.environment import Environment
from headrace.training.errors import Interrupted
from headrace.training.process_group import broadcast_bytes
from headrace.training.running import Run, session

REPORT_EVERY = 10
"""Rounds between two reports of the training loss."""
LOG_EVERY = 2.0
"""Least seconds between two lines of progress in the log."""
MODEL = "model"

logger = logging.getLogger(__name__)


class Booster(Protocol):
    """A model of one of the libraries that is being trained by all workers together."""

    file_name: str
    """Of the model in the library's own format."""

    def train(self, rounds: int, after_round: Callable[[], bool]) -> None:
        """Add trees until `rounds` are done or `after_round` says that it is enough. Every worker must call it."""

    def loss(self, test: bool) -> float:
        """Of the training or test rows of all workers. Every worker must call it."""

    def rounds(self) -> int:
        """Rounds finished."""

    def content(self) -> bytes:
        """The model in the library's own format."""

    def keep(self, rounds: int) -> None:
        """Forget all but the first `rounds`; nothing can be added afterwards."""

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Probabilities, shape (rows, classes), or numbers, shape (rows,)."""

    def to_onnx(self) -> Any:
        """The ModelProto."""


@dataclass(slots=True)
class Best:
    """The round with the least test loss so far."""

    loss: float = float("inf")
    round: int = 0

    def worse_for(self, rounds: int, round_: int, loss: float) -> bool:
        """Take a new loss; whether there was none better in the last `rounds`."""
        if loss < self.loss:
            self.loss, self.round = loss, round_
        return round_ - self.round >= rounds


def train(
    trainer: BoostingTrainer, storage_uri: str | None = None, sink: Callable[[str], None] | None = None
) -> dict[str, float]:
    """See `headrace.training.classic.train`."""
    told = Environment.read()
    part = patiently(lambda: load(trainer.dataset, trainer.seed, told.rank, told.world_size, missing=True))
    with session(storage_uri, sink, told) as run:
        classes = count_classes(run, trainer, part)
        snapshot = Snapshot()
        mark = fingerprint(trainer.model_dump(mode="json", exclude={"rounds"}), part)
        state = run.checkpoints.restore({"booster": snapshot}, mark) or {}
        previous = snapshot.get_bytes(MODEL) if state else None
        library = _xgboost if trainer.library == "XGBoost" else _lightgbm
        started = time.monotonic()
        with library(run, trainer, part, classes, previous) as booster:
            best = Best(*state.get("best", ()))
            if booster.rounds() < trainer.rounds and not (state.get("last") and trainer.early_stopping_rounds):
                booster.train(trainer.rounds, _Progress(run, trainer, booster, best, len(part.train)))
            seconds = time.monotonic() - started
            if trainer.early_stopping_rounds is not None:
                booster.keep(best.round)
        return _finish(run, trainer, part, booster, classes, seconds)


def count_classes(run: Run, trainer: BoostingTrainer, part: Part) -> int:
    """Classes of the labels over all workers; 1 where the label is a number.

    Raises:
        ConfigurationError: the labels are no classes.
    """
    if trainer.objective == "SquaredError":
        return 1
    labels = np.concatenate([part.train.labels, part.test.labels])
    classes = max(2 if trainer.objective == "Logistic" else 1, collective.largest(run, int(labels.max(initial=0))) + 1)
    known = part.train.labels[(part.train.labels >= 0) & (part.train.labels == np.floor(part.train.labels))]
    counts = collective.add(run, np.bincount(known.astype(np.int64), minlength=classes))
    require_classes(labels, counts)
    if trainer.objective == "Logistic" and classes > 2:
        from headrace.training.errors import ConfigurationError

        raise ConfigurationError(
            "objective", f"Logistic, and there are {classes} classes", "set objective to Softmax, or keep two classes"
        )
    return classes


class _Progress:
    """What is done after each round: reports, checkpoints, early stopping."""

    def __init__(self, run: Run, trainer: BoostingTrainer, booster: Booster, best: Best, rows: int) -> None:
        self._run, self._trainer, self._booster, self._best, self._rows = run, trainer, booster, best, rows
        self._done = self._reported = booster.rounds()
        self._last_log = time.monotonic()
        run.report(step=self._done, steps=trainer.rounds)

    def __call__(self) -> bool:
        run, trainer, booster = self._run, self._trainer, self._booster
        done = booster.rounds()
        stop = done == self._done  # No leaf can be split any more.
        self._done = done
        if trainer.early_stopping_rounds is not None:
            stop |= self._best.worse_for(trainer.early_stopping_rounds, done, booster.loss(test=True))
        last = stop or done >= trainer.rounds
        if last or done - self._reported >= REPORT_EVERY:
            self._report(last)
        else:
            run.report(step=done)
        if run.checkpoints.due() or last:
            self._save(last)
        if run.must_stop and not last:
            raise Interrupted
        return stop

    def _report(self, last: bool) -> None:
        done, rounds = self._done, self._trainer.rounds
        loss = self._booster.loss(test=False)
        self._run.report(step=done, steps=rounds, loss=loss, samples=self._rows * (done - self._reported))
        self._reported = done
        now = time.monotonic()
        if self._run.rank == 0 and (last or now - self._last_log >= LOG_EVERY):
            self._last_log = now
            best = f"; round {self._best.round} was the best so far" if self._best.round else ""
            logger.info("round %d of %d, loss %.5g%s", done, rounds, loss, best)

    def _save(self, last: bool) -> None:
        run = self._run
        snapshot = Snapshot()
        # LightGBM's text names each worker's own port, and all must save the same.
        snapshot.set_bytes(MODEL, broadcast_bytes(self._booster.content() if run.rank == 0 else None, run.device))
        best = [self._best.loss, self._best.round]
        run.checkpoints.save(self._done, {"booster": snapshot}, best=best, last=last)


def _finish(
    run: Run, trainer: BoostingTrainer, part: Part, booster: Booster, classes: int, seconds: float
) -> dict[str, float]:
    predictions = booster.predict(part.test.features)
    if classes == 1:
        metrics = results.regression_metrics(run, part.test.labels, predictions)
    else:
        metrics = results.classification_metrics(run, part.test.labels, predictions, classes)
    if run.rank != 0:
        return {}
    rows = part.test.features[: results.CHECKED_ROWS]
    metadata = {name: f"{value:.6g}" for name, value in metrics.items()}
    onnx = results.checked_onnx(booster.to_onnx(), rows, predictions[: len(rows)], metadata)
    files = {booster.file_name: booster.content(), results.ONNX_FILE: onnx}
    facts = {
        "rounds": booster.rounds(),
        "rows": part.total,
        "classes": classes,
        "features": list(part.columns),
        "library": trainer.library,
        "seconds": round(seconds, 3),
    }
    results.publish(run, trainer, files, metrics, facts, part)
    return metrics


def _xgboost(run: Run, trainer: BoostingTrainer, part: Part, classes: int, previous: bytes | None) -> Any:
    from headrace.training.classic.xgboost_booster import xgboost_booster

    return xgboost_booster(run, trainer, part, classes, previous)


def _lightgbm(run: Run, trainer: BoostingTrainer, part: Part, classes: int, previous: bytes | None) -> Any:
    from headrace.training.classic.lightgbm_booster import lightgbm_booster

    return lightgbm_booster(run, trainer, part, classes, previous)
