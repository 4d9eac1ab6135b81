"""The end of a run: what passes the gate, what the card says, and a registry that is not there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.api.trainingjob import Evaluation, Registry
from headrace.mlflow import Client, RegistryError
from headrace.storage import Store
from headrace.training.agent.causes import Failure, first_cause
from headrace.training.environment import Environment
from headrace.training.errors import EXIT_GATE_NOT_MET, GateNotMet
from headrace.training.export import Layer, classifier_to_onnx
from headrace.training.model_card import data_version, git_commit, signature
from headrace.training.output import check, publish, unknown_metric

ONNX = classifier_to_onnx(
    np.zeros(4, np.float32), np.ones(4, np.float32), [Layer(np.ones((3, 4), np.float32), np.zeros(3, np.float32))]
)


@pytest.mark.parametrize(
    ("gate", "metrics", "says"),
    [
        ({"metric": "accuracy", "min": 0.9}, {"accuracy": 0.95}, True),
        ({"metric": "accuracy", "min": 0.9}, {"accuracy": 0.9}, True),
        ({"metric": "accuracy", "min": 0.9}, {"loss": 0.1}, False),
        ({"metric": "accuracy", "min": 0.9}, {"accuracy": 0.8999}, "accuracy is 0.899900, at least 0.9 is asked for"),
        ({"metric": "rmse", "max": 1.5}, {"rmse": 2.0}, "rmse is 2.00000, at most 1.5 is asked for"),
        ({"metric": "r2", "min": 0}, {"r2": float("nan")}, "r2 is nan"),
        (None, {"accuracy": 0.1}, False),
    ],
)
def test_the_gate(gate: dict[str, Any] | None, metrics: dict[str, float], says: bool | str) -> None:
    asked = Evaluation.model_validate(gate) if gate else None
    if isinstance(says, bool):
        assert check(asked, metrics) is says
        return
    with pytest.raises(GateNotMet, match=says):
        check(asked, metrics)


def test_a_gate_without_its_metric_names_those_that_there_are() -> None:
    error = unknown_metric(Evaluation(metric="acuracy", min=0.9), {"accuracy": 0.95, "loss": 0.1})
    assert "no metric 'acuracy'; it reported accuracy, loss" in str(error)


def test_the_signature_is_that_of_the_graph() -> None:
    assert signature(ONNX) == {
        "inputs": [{"name": "input", "dtype": "float32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "label", "dtype": "int64", "shape": [-1]},
            {"name": "probabilities", "dtype": "float32", "shape": [-1, 3]},
        ],
    }


def test_the_version_of_data_is_its_files_and_its_table(tmp_path: Path) -> None:
    (tmp_path / "part-0.parquet").write_bytes(b"rows")
    (tmp_path / "_delta_log").mkdir()
    for number in (0, 7):
        (tmp_path / "_delta_log" / f"{number:020d}.json").write_text("{}")
    found = data_version(f"file://{tmp_path}")
    assert found["tableVersion"] == 7
    assert found["files"] == [{"path": "part-0.parquet", "size": 4, "sha256": hashlib.sha256(b"rows").hexdigest()}]


def test_the_commit_is_found_from_inside_a_repository(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / ".git" / "refs").mkdir(parents=True)
    (tmp_path / "training").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/main\n")
    (tmp_path / ".git" / "refs" / "main").write_text(f"{commit}\n")
    assert git_commit(tmp_path / "training") == commit


def test_a_model_is_there_though_the_registry_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.mlflow.ATTEMPTS", 1)
    registry = Registry(tracking_uri="http://127.0.0.1:1", model="digits")
    environment = Environment(job="digits", registry=registry)
    uri, registered = publish(
        environment,
        Store.open(f"file://{tmp_path}"),
        {"model.onnx": ONNX},
        {"accuracy": 0.97},
        {"epochs": 3},
        {"data": {"uri": "s3://data/digits", "tableVersion": 7}},
        1_700_000_000.0,
        [],
    )
    assert uri == f"file://{tmp_path}/model/model.onnx"
    assert "check registry.trackingUri and that the server runs" in registered["problem"]
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["metrics"] == {"accuracy": 0.97}
    assert card["data"]["tableVersion"] == 7
    assert card["parameters"] == {"epochs": 3}
    assert card["run"]["startedAt"] == "2023-11-14T22:13:20Z"
    assert card["files"]["model.onnx"]["sha256"] == hashlib.sha256(ONNX).hexdigest()


def test_the_server_is_asked_again_while_it_does_not_answer() -> None:
    waited: list[float] = []
    with pytest.raises(RegistryError, match="no answer"):
        Client("http://127.0.0.1:1", {}, waited.append).experiment("x")
    assert waited == [1, 2, 4]


def test_the_agents_end_the_job_for_a_model_that_misses_its_gate() -> None:
    cause = first_cause([Failure(0, 0, EXIT_GATE_NOT_MET, "evaluation: accuracy is 0.91, at least 0.95 is asked for")])
    assert (cause.reason, cause.fatal, cause.code) == ("GateNotMet", True, 79)
    assert cause.message.startswith("evaluation: accuracy is 0.91")
