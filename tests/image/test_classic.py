"""The classic trainers as they run in pods: several processes over loopback end with the model of one process.

Expected values are those that the libraries themselves compute in one process, on the same rows.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from headrace.api.trainingjob import BoostingTrainer
from headrace.training.classic import lightgbm_booster, xgboost_booster
from headrace.training.classic.als import Penalty, Ratings, solve
from headrace.training.classic.factorization import first_factors
from headrace.training.classic.rows import chosen_for_test
from tests.image.workers import Workers, finished_steps

DIGITS = load_digits()
TEST = chosen_for_test(0, len(DIGITS.target), 0.2, 0)
FEATURES = DIGITS.data.astype(np.float32)
TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = FEATURES[~TEST], DIGITS.target[~TEST], FEATURES[TEST], DIGITS.target[TEST]
DATASET = {"builtin": "Digits"}


def workers(folder: Path, trainer: str, count: int, settings: dict[str, Any], **variables: str) -> Workers:
    told = {"HEADRACE_TRAINER": json.dumps(settings), "HEADRACE_COLLECTIVE_TIMEOUT": "60s", **variables}
    arguments = ("-m", "headrace.training", trainer)
    return Workers(folder / "logs", f"file://{folder}", count, arguments, told).start()


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "model" / "metrics.json").read_text())["metrics"])


def onnx_output(folder: Path, features: Any) -> Any:
    model = ReferenceEvaluator((folder / "model" / "model.onnx").read_bytes())
    return model.run(None, {"input": features})[-1]


def test_xgboost_over_two_workers_survives_a_kill_and_equals_one_process(tmp_path: Path) -> None:
    settings = {"dataset": DATASET, "objective": "Softmax", "rounds": 30, "maxDepth": 4, "learningRate": 0.3}
    group = workers(tmp_path, "boosting", 2, settings, HEADRACE_CHECKPOINT_INTERVAL="20ms")
    group.until(lambda: finished_steps(tmp_path)[-1:] >= [2])
    # As the agents do: one is lost, and all start anew.
    group.signal(1, signal.SIGKILL)
    group.kill()
    assert not (tmp_path / "model").exists(), "killed before the end"
    again = workers(tmp_path, "boosting", 2, settings, HEADRACE_ATTEMPT="2")
    assert again.wait() == [0, 0], again.output()
    assert "resumed from the checkpoint of step" in again.output()

    parameters = xgboost_booster.parameters(BoostingTrainer.model_validate(settings), 10)
    alone = xgboost.train(parameters, xgboost.QuantileDMatrix(TRAIN_X, TRAIN_Y, max_bin=255), 30)
    distributed = xgboost.Booster(model_file=tmp_path / "model" / "model.ubj")
    assert distributed.num_boosted_rounds() == 30
    expected, found = alone.inplace_predict(TEST_X), distributed.inplace_predict(TEST_X)
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= 0.99
    assert metrics(tmp_path)["loss"] == pytest.approx(log_loss(TEST_Y, expected), abs=0.01)
    np.testing.assert_allclose(onnx_output(tmp_path, TEST_X[:20]), found[:20], atol=1e-5)


def test_lightgbm_over_two_workers_stops_early_together_and_equals_one_process(tmp_path: Path) -> None:
    settings = {
        "dataset": DATASET,
        "library": "LightGBM",
        "objective": "Softmax",
        "rounds": 200,
        "learningRate": 0.3,
        "earlyStoppingRounds": 3,
    }
    group = workers(tmp_path, "boosting", 2, settings)
    assert group.wait() == [0, 0], group.output()

    distributed = lightgbm.Booster(model_file=tmp_path / "model" / "model.txt")
    rounds = distributed.current_iteration()
    assert 5 < rounds < 150, "stopped, and kept the best"
    parameters = lightgbm_booster.parameters(BoostingTrainer.model_validate(settings), 10)
    alone = lightgbm.train(parameters, lightgbm.Dataset(TRAIN_X, TRAIN_Y), rounds)
    expected, found = alone.predict(TEST_X), distributed.predict(TEST_X)
    # Workers find their columns' bins from their own rows, so not every split is at the same place.
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= 0.96
    assert metrics(tmp_path)["loss"] == pytest.approx(log_loss(TEST_Y, expected), abs=0.02)
    np.testing.assert_allclose(onnx_output(tmp_path, TEST_X[:20]), found[:20], atol=1e-5)


def test_a_forest_is_scikit_learns_whoever_grew_the_trees_and_whatever_was_grown_before(tmp_path: Path) -> None:
    settings = {"dataset": DATASET, "trees": 40}
    folder = tmp_path / "checkpoints"
    group = workers(tmp_path, "forest", 2, settings)
    group.until(lambda: any(folder.glob("forest-*/1.skops")))
    group.kill()
    again = workers(tmp_path, "forest", 2, settings, HEADRACE_ATTEMPT="2")
    assert again.wait() == [0, 0], again.output()

    alone = RandomForestClassifier(n_estimators=40, random_state=0).fit(TRAIN_X, TRAIN_Y)
    expected = alone.predict_proba(TEST_X)
    assert metrics(tmp_path)["accuracy"] == np.mean(expected.argmax(axis=1) == TEST_Y)
    assert metrics(tmp_path)["loss"] == pytest.approx(log_loss(TEST_Y, expected), rel=1e-9)
    np.testing.assert_allclose(onnx_output(tmp_path, TEST_X[:20]), expected[:20], atol=1e-6)
    assert not list(folder.glob("forest-*")), "what is finished needs no checkpoint"


def test_logistic_regression_over_three_workers_has_scikit_learns_coefficients(tmp_path: Path) -> None:
    group = workers(tmp_path, "logisticRegression", 3, {"dataset": DATASET, "l2": 2.0, "tolerance": 1e-8})
    assert group.wait() == [0, 0, 0], group.output()

    scaler = StandardScaler().fit(TRAIN_X.astype(np.float64))
    # In 64 bits: scikit-learn's own solution of 32-bit rows is 0.001 away.
    inputs = scaler.transform(TRAIN_X.astype(np.float64))
    alone = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(inputs, TRAIN_Y)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    np.testing.assert_allclose(tensors["coefficients"], alone.coef_, atol=1e-3)
    np.testing.assert_allclose(tensors["intercepts"] - tensors["intercepts"].mean(), alone.intercept_, atol=1e-3)
    expected = alone.predict_proba(scaler.transform(TEST_X.astype(np.float64)))
    assert metrics(tmp_path)["loss"] == pytest.approx(log_loss(TEST_Y, expected), abs=1e-4)
    np.testing.assert_allclose(onnx_output(tmp_path, TEST_X[:20]), expected[:20], atol=1e-4)


def test_matrix_factorisation_over_three_workers_has_the_factors_of_one(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    random = np.random.default_rng(0)
    users, items = random.integers(0, 90, 2000) * 7, random.integers(0, 60, 2000) + 1000
    ratings = random.integers(1, 6, 2000)
    folder = tmp_path / "data"
    folder.mkdir()
    for part in range(2):
        rows = slice(part * 1000, part * 1000 + 1000)
        table = pyarrow.table({"user": users[rows], "item": items[rows], "rating": ratings[rows]})
        parquet.write_table(table, folder / f"{part}.parquet", row_group_size=300)
    settings = {"uri": f"file://{folder}", "factors": 8, "iterations": 6, "regularization": 0.05}
    group = workers(tmp_path, "matrixFactorization", 3, settings)
    assert group.wait() == [0, 0, 0], group.output()

    known = ~chosen_for_test(0, 2000, 0.2, 0)
    user_ids, by_user = np.unique(users[known], return_inverse=True)
    item_ids, by_item = np.unique(items[known], return_inverse=True)
    values = ratings[known].astype(np.float32)
    penalty = Penalty(0.05)
    item_factors = first_factors(len(item_ids), 8, 0)
    for _ in range(6):
        user_factors = solve(Ratings.of(by_user, by_item, values, len(user_ids)), item_factors, penalty)
        item_factors = solve(Ratings.of(by_item, by_user, values, len(item_ids)), user_factors, penalty)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    np.testing.assert_array_equal(tensors["user_ids"], user_ids)
    np.testing.assert_allclose(tensors["user_factors"], user_factors, atol=1e-3)
    np.testing.assert_allclose(tensors["item_factors"], item_factors, atol=1e-3)
