"""The built-in trainer: a multilayer perceptron, trained by all workers on the same sequence of global batches.

Each step takes `batch_size` rows in an order fixed by the seed, whatever the number of workers; each worker takes its
part of them, and the topology's strategy takes the step. Under AllReduce and Pipeline three workers thus take the steps
that one would take, up to the rounding of sums in another order.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.api.trainingjob import ClassifierTrainer
from headrace.storage import patiently
from headrace.training.data import Features, Split, Standardization, epoch_order, load, shard, split
from headrace.training.errors import ConfigurationError, Interrupted
from headrace.training.running import Run, session
from headrace.training.strategy import Strategy, strategy
from headrace.training.strategy.parameter_server import ParameterServerStrategy

logger = logging.getLogger(__name__)

REPORT_EVERY = 50
"""Steps between two reports of the loss within an epoch; each costs one all-reduce of two numbers."""
LOG_EVERY = 2.0
"""Least seconds between two lines of progress in the log."""
MOMENTUM = 0.9


@dataclass(slots=True)
class Position:
    """Where training stands: epochs finished, batches finished in the epoch after them, optimiser steps in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


def train_classifier(
    trainer: ClassifierTrainer,
    storage_uri: str | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    sink: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Train, evaluate and export a classifier; in a job each worker calls it.

    Args:
        trainer: What to train on and how.
        storage_uri: Folder for checkpoints and the model; by default HEADRACE_STORAGE_URI, and without either the
            model is not exported. A checkpoint of the same configuration in it is resumed from.
        on_epoch: Called after each epoch with its number (from 1) and its mean training loss.
        sink: Takes progress reports as JSON lines where the process is not in a pod.

    Returns:
        Test metrics by name on rank 0 (none of them where test_fraction is 0); empty on the other workers.

    Raises:
        ConfigurationError: the configuration or the data cannot work.
        StorageError: storage cannot be read or written.
        Interrupted: SIGTERM came.
    """
    # Before the others are waited for: what is wrong with the data is then known at once.
    material = _Material.prepare(trainer)
    with session(storage_uri, sink) as run:
        return _Training(trainer, material, run, on_epoch).run()


@dataclass(frozen=True, slots=True)
class _Material:
    """What is trained on: the split, its standardized training rows, and the fingerprint of data and settings."""

    data: Split
    classes: int
    standardization: Standardization
    inputs: Features
    fingerprint: str

    @classmethod
    def prepare(cls, trainer: ClassifierTrainer) -> _Material:
        table = patiently(lambda: load(trainer.dataset))
        data = split(table, trainer.dataset.test_fraction, trainer.seed)
        standardization = Standardization.of(data.train.features)
        inputs = standardization.apply(data.train.features)
        return cls(data, table.classes, standardization, inputs, _fingerprint(trainer, table.digest()))


class _Training:
    """One worker's training of one classifier."""

    def __init__(
        self,
        trainer: ClassifierTrainer,
        material: _Material,
        run: Run,
        on_epoch: Callable[[int, float], None] | None,
    ) -> None:
        import torch

        self._trainer = trainer
        self._material = material
        self._run = run
        self._on_epoch = on_epoch
        self._inputs = torch.from_numpy(material.inputs).to(run.device)
        self._labels = torch.from_numpy(material.data.train.labels).to(run.device)
        self._batches = math.ceil(len(self._labels) / trainer.batch_size)
        self._steps = self._batches * trainer.epochs
        torch.manual_seed(trainer.seed)
        columns = self._inputs.shape[1]
        layers = [layer.to(run.device) for layer in _perceptron(columns, trainer.hidden_sizes, material.classes)]
        self._position = Position()
        self._strategy = self._choose(layers, columns)
        run.watch(getattr(self._strategy, "parallel", None))
        self._loss = math.nan
        self._last_log = 0.0

    def run(self) -> dict[str, float]:
        run, position = self._run, self._position
        if run.rank == 0:
            logger.info(
                "training on %d rows of %d features and %d classes, %d test rows, %d steps",
                *self._inputs.shape,
                self._material.classes,
                len(self._material.data.test.labels),
                self._steps,
            )
        state = run.checkpoints.restore(self._strategy.objects(), self._material.fingerprint)
        if state is not None:
            self._strategy.restored()
            position.epoch, position.batch, position.step = state["epoch"], state["batch"], state["step"]
        started_at = position.step
        run.report(epoch=position.epoch, epochs=self._trainer.epochs, step=position.step, steps=self._steps)
        while position.epoch < self._trainer.epochs:
            self._train_epoch()
        model = self._strategy.finish()
        if position.step > started_at:
            self._save()
        if run.rank != 0:
            return {}
        return self._finish(model)

    def _choose(self, layers: list[Any], columns: int) -> Strategy:
        """What the topology asks for; a worker of a parameter server goes on where it, or one before it, was."""
        if self._run.environment.topology.type == "ParameterServer":
            from torch import nn

            model = nn.Sequential(*[module for layer in layers for module in layer])
            served = ParameterServerStrategy(
                model, self._run, _summed_cross_entropy, self._trainer.learning_rate, self._material.fingerprint
            )
            step = min(served.steps, self._steps)
            self._position = Position(*divmod(step, self._batches), step)
            return served
        return strategy(
            layers,
            lambda parameters: _optimizer(parameters, self._trainer),
            _summed_cross_entropy,
            self._run.environment.topology,
            self._run.group,
            self._run.rank,
            self._run.world_size,
            self._run.environment.place,
            columns,
            self._trainer.batch_size,
        )

    def _train_epoch(self) -> None:
        import torch

        run, trainer, position = self._run, self._trainer, self._position
        order = epoch_order(len(self._labels), trainer.seed, position.epoch)
        total = torch.zeros(2, dtype=torch.float64, device=run.device)
        reported = position.batch
        while position.batch < self._batches:
            batch = order[position.batch * trainer.batch_size : (position.batch + 1) * trainer.batch_size]
            mine = torch.from_numpy(shard(batch, *self._strategy.part)).to(run.device)
            loss = self._strategy.step(self._inputs[mine], self._labels[mine], len(batch))
            if self._strategy.counts:
                total[0] += loss
                total[1] += len(mine)
            position.batch += 1
            position.step += 1
            run.beat(position.step)
            last = position.batch == self._batches
            if last:
                position.epoch, position.batch = position.epoch + 1, 0
            if last or position.batch - reported >= REPORT_EVERY:
                self._report(total)
                reported = position.batch
            if self._is_time_to_save():
                self._save()
            if run.must_stop:
                raise Interrupted
            if last:
                break
        if self._on_epoch is not None:
            self._on_epoch(position.epoch, self._loss)

    def _is_time_to_save(self) -> bool:
        """Whether a checkpoint is due now, the same on all processes; what is needed of them is then at rank 0."""
        if not self._strategy.may_save() or not self._run.checkpoints.due():
            return False
        if self._strategy.gathers:
            self._strategy.gather()
        return True

    def _report(self, total: Any) -> None:
        """The mean loss over all rows since `total` was last zero; every worker must call it at the same step."""
        import torch.distributed as dist

        run, position = self._run, self._position
        dist.all_reduce(total)
        loss, rows = total.tolist()
        total.zero_()
        self._loss = loss / rows
        if not math.isfinite(self._loss):
            raise ConfigurationError(
                "learningRate",
                f"the training loss is {self._loss} at step {position.step} with {self._trainer.learning_rate:g}",
                "choose a smaller learning rate, or look for extreme values in the data",
            )
        run.report(epoch=position.epoch, step=position.step, loss=self._loss, samples=rows / run.world_size)
        now = time.monotonic()
        if run.rank == 0 and (now - self._last_log >= LOG_EVERY or position.step == self._steps):
            self._last_log = now
            logger.info(
                "epoch %d of %d, step %d of %d, loss %.4g",
                position.epoch,
                self._trainer.epochs,
                position.step,
                self._steps,
                self._loss,
            )

    def _save(self) -> None:
        position = self._position
        self._run.checkpoints.save(
            position.step, self._strategy.objects(), self._numbers(), epoch=position.epoch, batch=position.batch
        )

    def _numbers(self) -> dict[str, float]:
        """What checkpoint.best may go by."""
        return {"loss": self._loss} if math.isfinite(self._loss) else {}

    def _finish(self, model: Any) -> dict[str, float]:
        from headrace.training.evaluation import evaluate, model_files, transform_digest

        data, standardization = self._material.data, self._material.standardization
        evaluated = evaluate(model, standardization, data.test, self._material.classes, self._run.device)
        metrics = evaluated.metrics
        if self._run.storage is None:
            self._run.report(metrics=metrics)
        else:
            facts: Mapping[str, Any] = {
                "epochs": self._position.epoch,
                "steps": self._position.step,
                "trainRows": len(data.train.labels),
                "testRows": len(data.test.labels),
                "classes": self._material.classes,
                "features": list(data.train.columns),
                "workers": self._run.world_size,
                "backend": self._run.backend,
                "attempt": self._run.environment.attempt,
                "trainer": self._trainer.manifest(),
            }
            self._run.publish(
                model_files(model, standardization, data.test, evaluated, facts),
                metrics,
                self._trainer.manifest(),
                data=self._data(),
                classes=evaluated.classes,
                featureTransform=transform_digest(standardization),
            )
        if metrics:
            logger.info("test metrics: %s", ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        return metrics

    def _data(self) -> dict[str, Any]:
        """What was trained on, for the model's card."""
        from headrace.training.model_card import data_version_or_why

        data, dataset = self._material.data, self._trainer.dataset
        source = data_version_or_why(dataset.uri) if dataset.uri else {"builtin": dataset.builtin}
        return {
            **source,
            "trainRows": len(data.train.labels),
            "testRows": len(data.test.labels),
            "columns": list(data.train.columns),
            "trainDigest": data.train.digest(),
            "testDigest": data.test.digest(),
        }


def _perceptron(features: int, hidden_sizes: list[int], classes: int) -> list[Any]:
    """Linear layers, each but the last with a ReLU; the outputs are logits."""
    from torch import nn

    pairs = list(itertools.pairwise([features, *hidden_sizes, classes]))
    hidden = [nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU()) for inputs, outputs in pairs[:-1]]
    return [*hidden, nn.Sequential(nn.Linear(*pairs[-1]))]


def _summed_cross_entropy(outputs: Any, labels: Any) -> Any:
    from torch.nn.functional import cross_entropy

    return cross_entropy(outputs, labels, reduction="sum")


def _optimizer(parameters: Any, trainer: ClassifierTrainer) -> Any:
    from torch import optim

    if trainer.optimizer == "SGD":
        return optim.SGD(parameters, lr=trainer.learning_rate, momentum=MOMENTUM)
    return optim.Adam(parameters, lr=trainer.learning_rate)


def _fingerprint(trainer: ClassifierTrainer, data: str) -> str:
    """Of all that a checkpoint depends on. Not the number of epochs: a longer run goes on from a shorter one's end."""
    settings = trainer.model_dump(mode="json", exclude={"epochs"})
    settings["dataset"].pop("uri", None)
    return hashlib.sha256(json.dumps([settings, data], sort_keys=True).encode()).hexdigest()
