"""Models that no process holds as a whole take the steps that one process takes, and go on from each other's state."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.image.test_strategies import Result, train, workers
from tests.image.workers import classifier, finished_steps

EPOCHS = 4
"""Of 23 steps; sharding costs Python a few milliseconds per layer and step, on few cores more."""
# The last of three layers has no pair to be split with, and its ten classes do not divide by four.
SETTINGS: dict[str, Any] = {"epochs": EPOCHS, "hiddenSizes": [64, 32], "learningRate": 0.005}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One process trains the model."""
    return train(tmp_path_factory.mktemp("alone"), 1, {}, **SETTINGS)


@pytest.mark.parametrize(
    ("topology", "places"),
    [
        ({"sharding": "HybridShard"}, ("a", "b", "a", "b")),
        ({"tensorParallel": 2}, ()),
        ({"tensorParallel": 2, "sharding": "FullShard"}, ()),
    ],
    ids=["HybridShard", "two halves of layers, two replicas", "two halves of layers, two shards"],
)
def test_four_processes_take_the_steps_that_one_takes(
    alone: Result, tmp_path: Path, topology: dict[str, Any], places: Sequence[str]
) -> None:
    four = train(tmp_path, 4, topology, places, **SETTINGS)
    assert len(four.losses) == EPOCHS
    # Sums in another order differ in the last bits of a float32; Adam lets that grow.
    np.testing.assert_allclose(four.losses, alone.losses, rtol=2e-3)
    assert abs(four.metrics["accuracy"] - alone.metrics["accuracy"]) <= 0.006  # two of 360 rows


def test_a_killed_sharded_run_goes_on_with_fewer_workers_and_split_layers(alone: Result, tmp_path: Path) -> None:
    variables = classifier(**SETTINGS)
    first = workers(tmp_path, 3, {"sharding": "FullShard"}, (), variables)
    first.until(lambda: len([step for step in finished_steps(tmp_path / "storage") if step > 15]) > 0)
    first.signal(1, signal.SIGKILL)
    assert first.wait(30)[1] == -signal.SIGKILL, first.output()
    saved = finished_steps(tmp_path / "storage")[-1]
    parts = sorted((tmp_path / "storage" / "checkpoints" / f"step-{saved}").glob("*.shard-*.safetensors"))
    assert len(parts) == 3  # nobody wrote the whole model

    second = workers(tmp_path, 2, {"tensorParallel": 2}, (), variables)
    assert second.wait() == [0] * 2, second.output()
    assert f"resumed from the checkpoint of step {saved}" in second.logs[0].read_text()
    losses, metrics = json.loads(second.last_line(0))
    np.testing.assert_allclose(losses[-1], alone.losses[-1], rtol=2e-3)
    assert abs(metrics["accuracy"] - alone.metrics["accuracy"]) <= 0.006
