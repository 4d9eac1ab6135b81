"""The built-in trainer as it runs in pods: several processes over gloo, storage, kills and restarts."""

from __future__ import annotations

import hashlib
import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.image.workers import Workers, classifier, finished_steps

LOSSES = """
import json, os, sys
from headrace.api.trainingjob import ClassifierTrainer
from headrace.training import train_classifier
losses = []
trainer = ClassifierTrainer.model_validate_json(os.environ["HEADRACE_CLASSIFIER"])
train_classifier(trainer, on_epoch=lambda epoch, loss: losses.append(loss))
if os.environ["RANK"] == "0":
    print(json.dumps(losses))
"""


@dataclass(frozen=True)
class Finished:
    storage: Path
    losses: list[float]

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(json.loads((self.storage / "model" / "metrics.json").read_text())["metrics"])

    @property
    def model(self) -> bytes:
        return (self.storage / "model" / "model.safetensors").read_bytes()


def train(folder: Path, count: int) -> Finished:
    storage = folder / "storage"
    variables = classifier() | {"HEADRACE_CHECKPOINT_INTERVAL": "100ms"}
    workers = Workers(folder / "logs", f"file://{storage}", count, ("-c", LOSSES), variables).start()
    assert workers.wait() == [0] * count, workers.output()
    return Finished(storage, json.loads(workers.last_line(0)))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with one worker that nothing happens to."""
    return train(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same run with three workers."""
    return train(tmp_path_factory.mktemp("three"), 3)


def test_three_workers_take_the_steps_that_one_takes(one: Finished, three: Finished) -> None:
    assert len(one.losses) == 40
    # Sums in another order differ in the last bits of a float32; 920 steps of Adam let that grow.
    np.testing.assert_allclose(three.losses, one.losses, rtol=2e-3)
    ours, theirs = (load_file(run.storage / "model" / "model.safetensors") for run in (one, three))
    for name, tensor in ours.items():
        np.testing.assert_allclose(theirs[name], tensor, atol=5e-3, err_msg=name)


def test_both_are_as_accurate_as_scikit_learns_own_perceptron(one: Finished, three: Finished) -> None:
    # The outside reference: sklearn.neural_network.MLPClassifier with its defaults on the same rows.
    digits = load_digits()
    rows = train_test_split(digits.data, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    reference = make_pipeline(StandardScaler(), MLPClassifier((64,), random_state=0, max_iter=300))
    expected = reference.fit(rows[0], rows[2]).score(rows[1], rows[3])

    assert abs(three.metrics["accuracy"] - one.metrics["accuracy"]) <= 0.006  # two of 360 rows
    for run in (one, three):
        assert run.metrics["accuracy"] >= expected - 0.01, f"scikit-learn reaches {expected}"


def test_the_exported_model_says_what_the_metrics_say(three: Finished) -> None:
    from onnx.reference import ReferenceEvaluator

    digits = load_digits()
    _, raw, _, truth = train_test_split(
        digits.data, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    evaluator = ReferenceEvaluator((three.storage / "model" / "model.onnx").read_bytes())
    label, probabilities = evaluator.run(None, {"input": raw.astype(np.float32)})
    assert np.mean(label == truth) == pytest.approx(three.metrics["accuracy"], abs=1e-9)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_card_says_what_scikit_learn_says_of_the_exported_model(three: Finished) -> None:
    from onnx.reference import ReferenceEvaluator
    from sklearn.metrics import classification_report, roc_auc_score

    card = json.loads((three.storage / "model" / "card.json").read_text())
    digits = load_digits()
    _, raw, _, truth = train_test_split(
        digits.data, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    evaluator = ReferenceEvaluator((three.storage / "model" / "model.onnx").read_bytes())
    label, probabilities = evaluator.run(None, {"input": raw.astype(np.float32)})
    expected = classification_report(truth, label, output_dict=True, zero_division=0.0)
    for item in card["classes"]:
        theirs = expected[str(item["class"])]
        assert item["precision"] == pytest.approx(theirs["precision"], abs=1e-9)
        assert item["recall"] == pytest.approx(theirs["recall"], abs=1e-9)
        assert item["rows"] == theirs["support"]
        auc = roc_auc_score(truth == item["class"], probabilities[:, item["class"]])
        assert item["auc"] == pytest.approx(auc, abs=1e-4)
    assert card["metrics"]["auc"] == pytest.approx(
        roc_auc_score(truth, probabilities / probabilities.sum(axis=1, keepdims=True), multi_class="ovr"), abs=1e-4
    )
    assert card["signature"]["inputs"] == [{"name": "input", "dtype": "float32", "shape": [-1, 64]}]
    assert card["data"]["builtin"] == "Digits"
    assert (card["run"]["job"], card["run"]["workers"]) == ("test", 3)
    assert card["parameters"]["epochs"] == 40
    onnx = three.storage / "model" / "model.onnx"
    assert card["files"]["model.onnx"]["sha256"] == hashlib.sha256(onnx.read_bytes()).hexdigest()


def test_a_model_that_misses_the_gate_is_not_published(tmp_path: Path) -> None:
    variables = classifier(epochs=1) | {"HEADRACE_EVALUATION": json.dumps({"metric": "accuracy", "min": 0.999})}
    workers = Workers(tmp_path / "logs", f"file://{tmp_path}/storage", 1, variables=variables).start()
    assert workers.wait() == [79], workers.output()
    assert workers.last_line(0).startswith("error: evaluation: accuracy is 0.")
    assert workers.last_line(0).endswith("at least 0.999 is asked for; nothing is published")
    assert not (tmp_path / "storage" / "model").exists()


def test_a_killed_worker_ends_the_attempt_and_the_next_one_ends_where_an_undisturbed_run_does(
    three: Finished, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    variables = classifier() | {"HEADRACE_CHECKPOINT_INTERVAL": "50ms"}
    first = Workers(tmp_path / "first", f"file://{storage}", 3, variables=variables).start()
    first.until(lambda: len([step for step in finished_steps(storage) if step > 100]) > 0)
    first.signal(1, signal.SIGKILL)
    codes = first.wait(30)
    assert codes == [1, -signal.SIGKILL, 1], first.output()
    assert first.last_line(0).startswith("error: worker 0 failed: RuntimeError")
    saved = finished_steps(storage)[-1]
    assert saved < 920, "it was killed too late to show anything"

    second = Workers(
        tmp_path / "second", f"file://{storage}", 3, variables=variables | {"HEADRACE_ATTEMPT": "2"}
    ).start()
    assert second.wait() == [0, 0, 0], second.output()
    assert f"resumed from the checkpoint of step {saved}" in second.logs[0].read_text()
    assert Finished(storage, []).model == three.model


def test_a_damaged_checkpoint_costs_only_the_way_from_the_one_before(one: Finished, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    variables = classifier() | {"HEADRACE_CHECKPOINT_INTERVAL": "50ms", "HEADRACE_CHECKPOINT_KEEP": "3"}
    first = Workers(tmp_path / "first", f"file://{storage}", variables=variables).start()
    first.until(lambda: len(finished_steps(storage)) == 3)
    first.signal(0, signal.SIGKILL)
    first.wait()
    steps = finished_steps(storage)
    tensors = storage / "checkpoints" / f"step-{steps[-1]}" / "attempt-1.safetensors"
    damaged = bytearray(tensors.read_bytes())
    damaged[-1] ^= 1
    tensors.write_bytes(damaged)

    second = Workers(tmp_path / "second", f"file://{storage}", variables=variables).start()
    assert second.wait() == [0], second.output()
    log = second.logs[0].read_text()
    assert f"step-{steps[-1]} cannot be used and the one before is tried" in log
    assert f"resumed from the checkpoint of step {steps[-2]}" in log
    assert Finished(storage, []).model == one.model


def test_a_worker_that_is_told_to_stop_saves_and_does_not_count_as_finished(one: Finished, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    # Never by itself before the end; but what took five seconds is worth saving, and these took it by waiting.
    variables = classifier(epochs=100_000) | {"HEADRACE_CHECKPOINT_INTERVAL": "1h"}
    workers = Workers(tmp_path / "first", f"file://{storage}", variables=variables).start()
    workers.until(lambda: workers.logs[0].read_text().count("INFO epoch") >= 4)
    assert finished_steps(storage) == []
    workers.signal(0, signal.SIGTERM)
    assert workers.wait(15) == [143], workers.output()
    assert workers.last_line(0) == "error: told to stop before the work was done"
    assert len(finished_steps(storage)) == 1


def test_a_learning_rate_that_diverges_is_a_configuration_error(tmp_path: Path) -> None:
    variables = classifier(learningRate=100.0, optimizer="SGD")
    workers = Workers(tmp_path / "logs", f"file://{tmp_path}/storage", 2, variables=variables).start()
    assert workers.wait() == [78, 78], workers.output()
    assert workers.last_line(0).startswith("error: learningRate: the training loss is nan")


def test_it_works_in_a_notebook(tmp_path: Path) -> None:
    script = (
        "from headrace.api.trainingjob import ClassifierTrainer, Dataset\n"
        "import headrace.training\n"
        "trainer = ClassifierTrainer(dataset=Dataset(builtin='Digits'), epochs=2)\n"
        f"for n in range(2):\n"
        f"    metrics = headrace.training.train_classifier(trainer, storage_uri='file://{tmp_path}/x')\n"
        "print(sorted(metrics))\n"
    )
    variables = {"HEADRACE_JOB": "", "MASTER_ADDR": "", "WORLD_SIZE": "", "RANK": ""}
    workers = Workers(tmp_path / "logs", "", 1, ("-c", script), variables).start()
    assert workers.wait() == [0], workers.output()
    assert workers.last_line(0) == "['accuracy', 'auc', 'f1', 'loss', 'precision', 'recall']"
    assert (tmp_path / "x" / "model" / "model.onnx").exists()
