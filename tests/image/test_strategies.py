"""The topologies train the same model: what several processes do is compared with what one does."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.image.workers import Workers, classifier, finished_steps

LOSSES = """
import json, os
from headrace.api.trainingjob import ClassifierTrainer
from headrace.training import train_classifier
losses = []
trainer = ClassifierTrainer.model_validate_json(os.environ["HEADRACE_CLASSIFIER"])
metrics = train_classifier(trainer, on_epoch=lambda epoch, loss: losses.append(loss))
if os.environ["RANK"] == "0":
    print(json.dumps([losses, metrics]))
"""
EPOCHS = 12
DEEP = classifier(epochs=EPOCHS, hiddenSizes=[64, 48, 32])


@dataclass(frozen=True)
class Result:
    losses: list[float]
    metrics: dict[str, float]


def workers(
    folder: Path, count: int, topology: dict[str, Any], places: Sequence[str] = (), variables: dict[str, str] = DEEP
) -> Workers:
    told = variables | {"HEADRACE_TOPOLOGY": json.dumps(topology), "HEADRACE_CHECKPOINT_INTERVAL": "100ms"}
    group = Workers(folder / "logs", f"file://{folder / 'storage'}", count, ("-c", LOSSES), told)
    return group.start([{"HEADRACE_ZONE": place} for place in places] or None)


def train(folder: Path, count: int, topology: dict[str, Any], places: Sequence[str] = (), **settings: Any) -> Result:
    variables = classifier(**settings) if settings else DEEP
    group = workers(folder, count, topology, places, variables)
    assert group.wait() == [0] * count, group.output()
    losses, metrics = json.loads(group.last_line(0))
    return Result(losses, metrics)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One process trains the model."""
    return train(tmp_path_factory.mktemp("alone"), 1, {})


@pytest.mark.parametrize(
    ("topology", "places"),
    [
        ({"allReduce": "Tree"}, ()),
        ({"allReduce": "Hierarchical"}, ("a", "b", "a", "b")),
        ({"type": "Pipeline", "pipeline": {"stages": 2, "schedule": "Interleaved1F1B", "microbatches": 4}}, ()),
    ],
    ids=["Tree", "Hierarchical", "Interleaved1F1B, two pipes"],
)
def test_four_processes_take_the_steps_that_one_takes(
    alone: Result, tmp_path: Path, topology: dict[str, Any], places: Sequence[str]
) -> None:
    four = train(tmp_path, 4, topology, places)
    assert len(four.losses) == EPOCHS
    # Sums in another order differ in the last bits of a float32; Adam lets that grow.
    np.testing.assert_allclose(four.losses, alone.losses, rtol=2e-3)
    assert abs(four.metrics["accuracy"] - alone.metrics["accuracy"]) <= 0.006  # two of 360 rows


def test_a_killed_pipeline_goes_on_with_another_number_of_stages(alone: Result, tmp_path: Path) -> None:
    first = workers(tmp_path, 2, {"type": "Pipeline", "pipeline": {"stages": 2, "schedule": "GPipe"}})
    first.until(lambda: len([step for step in finished_steps(tmp_path / "storage") if step > 30]) > 0)
    first.signal(1, signal.SIGKILL)
    assert first.wait(30) == [1, -signal.SIGKILL], first.output()
    saved = finished_steps(tmp_path / "storage")[-1]

    second = workers(tmp_path, 3, {"type": "Pipeline", "pipeline": {"stages": 3, "schedule": "1F1B"}})
    assert second.wait() == [0] * 3, second.output()
    assert f"resumed from the checkpoint of step {saved}" in second.logs[0].read_text()
    losses, metrics = json.loads(second.last_line(0))
    np.testing.assert_allclose(losses[-1], alone.losses[-1], rtol=2e-3)
    assert abs(metrics["accuracy"] - alone.metrics["accuracy"]) <= 0.006


def test_local_sgd_that_meets_at_every_step_is_data_parallel_sgd(tmp_path: Path) -> None:
    # SGD with momentum is linear in the gradients: the mean of models that each took a step from the same place is the
    # model that took the step of the mean gradient. Every row is in every batch, 599 for each of three replicas.
    settings: dict[str, Any] = {
        "dataset": {"builtin": "Digits", "testFraction": 0},
        "batchSize": 1797,
        "optimizer": "SGD",
        "learningRate": 0.05,
    }
    topology = {"type": "LocalSGD", "localSGD": {"innerSteps": 1, "outerLearningRate": 1, "outerMomentum": 0}}
    alone = train(tmp_path / "alone", 1, {}, **settings)
    three = train(tmp_path / "three", 3, topology, ("a", "b", "c"), **settings)
    np.testing.assert_allclose(three.losses, alone.losses, rtol=1e-3)


def test_zones_that_meet_every_twenty_steps_learn_as_much(alone: Result, tmp_path: Path) -> None:
    topology = {"type": "LocalSGD", "localSGD": {"innerSteps": 20}}
    four = train(tmp_path, 4, topology, ("a", "a", "b", "b"), **json.loads(DEEP["HEADRACE_CLASSIFIER"]))
    assert four.metrics["accuracy"] >= alone.metrics["accuracy"] - 0.02
