"""What the workers of classic trainers run, and what other frameworks' launchers would tell a command."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from controllers.trainingjob import builders
from headrace.api.trainingjob import TrainingJob, TrainingJobSpec
from headrace.api.trainingjob.spec import CLASSIC
from headrace.training.classic import TRAINERS
from tests.unit.trainingjob.worlds import SETTINGS

DIGITS = {"dataset": {"builtin": "Digits"}}
SPECS: dict[str, Any] = {
    "boosting": {**DIGITS, "objective": "Softmax", "library": "LightGBM"},
    "forest": {**DIGITS, "trees": 50},
    "matrixFactorization": {"uri": "s3://data/ratings", "objective": "Implicit", "alpha": 4},
    "logisticRegression": {**DIGITS, "l2": 0.5},
}


def job(workers: int = 3, **spec: Any) -> TrainingJob:
    manifest = {"name": "digits", "namespace": "team", "uid": "job-uid"}
    return TrainingJob.model_validate({"metadata": manifest, "spec": {"numWorkers": workers, **spec}})


def env(made: TrainingJob, index: int) -> dict[str, str]:
    container = builders.worker(made, SETTINGS, index, attempt=1, restarts=0, zones=True)["spec"]["containers"][0]
    return {item["name"]: item.get("value", "(reference)") for item in container["env"]}


@pytest.mark.parametrize("trainer", SPECS)
def test_a_worker_runs_the_trainer_with_its_settings(trainer: str) -> None:
    made = job(**{trainer: SPECS[trainer]})
    assert builders.command(made)[-3:] == ["-m", "headrace.training", trainer]
    told = env(made, 1)
    settings = TRAINERS[trainer][0].model_validate_json(told["HEADRACE_TRAINER"])
    assert settings == TRAINERS[trainer][0].model_validate(SPECS[trainer])
    assert "HEADRACE_CLASSIFIER" not in told


def test_the_trainer_image_can_run_what_the_spec_can_ask_for() -> None:
    assert set(CLASSIC) == set(TRAINERS)


COMMAND: dict[str, Any] = {"image": "registry.example/own:1", "command": ["python", "train.py"]}


def test_xgboosts_environment() -> None:
    """The names of https://xgboost.readthedocs.io and dmlc-core's tracker; rank 0 runs the tracker."""
    told = env(job(launcher="XGBoost", **COMMAND), 2)
    assert {name: told[name] for name in told if name.startswith("DMLC_")} == {
        "DMLC_ROLE": "worker",
        "DMLC_TRACKER_URI": told["MASTER_ADDR"],
        "DMLC_TRACKER_PORT": "29501",
        "DMLC_NUM_WORKER": "3",
        "DMLC_TASK_ID": "2",
    }


@pytest.mark.parametrize(("workers", "suffix"), [(3, ".team.svc.cluster.local:29501"), (1, "127.0.0.1:29501")])
def test_tensorflows_environment(workers: int, suffix: str) -> None:
    """https://www.tensorflow.org/guide/distributed_training, "Setting up the TF_CONFIG environment variable"."""
    told = json.loads(env(job(workers, launcher="TensorFlow", **COMMAND), workers - 1)["TF_CONFIG"])
    assert told["task"] == {"type": "worker", "index": workers - 1}
    assert len(told["cluster"]["worker"]) == workers
    assert all(address.endswith(suffix) for address in told["cluster"]["worker"])


def test_a_command_has_no_other_launchers_environment_unless_it_asks() -> None:
    told = env(job(**COMMAND), 0)
    assert not [name for name in told if name.startswith(("DMLC_", "TF_"))]
    TrainingJobSpec.model_validate({**COMMAND, "env": [{"name": "TF_CONFIG", "value": "{}"}]})


@pytest.mark.parametrize(
    ("launcher", "name"), [("XGBoost", "DMLC_TASK_ID"), ("TensorFlow", "TF_CONFIG"), ("Torchrun", "HEADRACE_TRAINER")]
)
def test_what_the_launcher_sets_cannot_be_set_otherwise(launcher: str, name: str) -> None:
    with pytest.raises(ValidationError, match=r"remove (it|them) from env"):
        TrainingJobSpec.model_validate({**COMMAND, "launcher": launcher, "env": [{"name": name, "value": "1"}]})
