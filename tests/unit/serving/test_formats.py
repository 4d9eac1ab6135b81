"""Each format answers what its own library predicts; what is no such file is refused with the remedy.

Expected numbers are those of XGBoost, LightGBM and scikit-learn themselves, from the objects that were trained.
"""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import skops.io
import xgboost
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headrace.serving.models import trial
from headrace.serving.models.base import Model, ModelError
from headrace.serving.models.formats import load
from headrace.serving.tensors import Array, RequestError

IRIS, SPECIES = load_iris(return_X_y=True)
DIABETES, PROGRESSION = load_diabetes(return_X_y=True)
QUIET = {"verbosity": -1, "num_threads": 1, "seed": 0}


@pytest.fixture(autouse=True)
def no_trial(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The files are good, so another process to read them in first is only needed where a test asks for it."""
    if "in_another_process" not in request.fixturenames:
        monkeypatch.setattr(trial, "run", lambda name, file: None)


@pytest.fixture
def in_another_process() -> None:
    """Fragile files are read in another process first, as always outside of these tests."""


def run(model: Model, rows: Array) -> Mapping[str, Array]:
    return dict(zip(model.output_names, model.run({"input": rows}, model.output_names), strict=True))


@pytest.mark.parametrize("name", ["model.ubj", "model.json"])
def test_xgboost_classifier(tmp_path: Path, name: str) -> None:
    trained = xgboost.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1).fit(IRIS, SPECIES)
    trained.save_model(tmp_path / name)
    model = load("XGBoost", tmp_path, 1)
    rows = IRIS.astype(np.float32)
    rows[::7, 2] = np.nan  # a missing value
    found = run(model, rows)
    np.testing.assert_array_equal(found["probabilities"], trained.predict_proba(rows))
    np.testing.assert_array_equal(found["label"], trained.predict(rows))
    assert [spec.manifest() for spec in model.outputs] == [
        {"name": "label", "datatype": "INT64", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
    ]
    assert run(model, np.empty((0, 4), np.float32))["probabilities"].shape == (0, 3)


def test_xgboost_that_stopped_early_answers_with_its_best_rounds(tmp_path: Path) -> None:
    half = len(DIABETES) // 2
    trained = xgboost.XGBRegressor(n_estimators=60, early_stopping_rounds=3, learning_rate=0.5, n_jobs=1)
    trained.fit(DIABETES[:half], PROGRESSION[:half], eval_set=[(DIABETES[half:], PROGRESSION[half:])], verbose=False)
    assert trained.best_iteration + 1 < trained.get_booster().num_boosted_rounds()
    trained.save_model(tmp_path / "model.ubj")
    rows = DIABETES.astype(np.float32)
    np.testing.assert_array_equal(run(load("XGBoost", tmp_path, 1), rows)["variable"][:, 0], trained.predict(rows))


def test_xgboost_of_two_classes_and_labels_alone(tmp_path: Path) -> None:
    rows, two = IRIS.astype(np.float32), (SPECIES == 1).astype(int)
    trained = xgboost.XGBClassifier(n_estimators=4, n_jobs=1).fit(rows, two)
    trained.save_model(tmp_path / "two.ubj")
    found = run(load("XGBoost", tmp_path / "two.ubj", 1), rows)
    np.testing.assert_array_equal(found["probabilities"], trained.predict_proba(rows))
    np.testing.assert_array_equal(found["label"], trained.predict(rows))
    settings = {"objective": "multi:softmax", "num_class": 3, "nthread": 1}
    booster = xgboost.train(settings, xgboost.DMatrix(rows, SPECIES), 3)
    booster.save_model(tmp_path / "labels.ubj")
    found = run(load("XGBoost", tmp_path / "labels.ubj", 1), rows)
    np.testing.assert_array_equal(found["label"], booster.predict(xgboost.DMatrix(rows)))


def test_lightgbm(tmp_path: Path) -> None:
    rows = np.where(np.arange(IRIS.size).reshape(IRIS.shape) % 11 == 0, np.nan, IRIS)
    for name, settings, labels in (
        ("three", {"objective": "multiclass", "num_class": 3}, SPECIES),
        ("two", {"objective": "binary"}, SPECIES == 1),
        ("number", {"objective": "regression"}, IRIS[:, 0]),
    ):
        booster = lightgbm.train(settings | QUIET, lightgbm.Dataset(rows, labels), 4)
        booster.save_model(tmp_path / f"{name}.txt")
        found = run(load("LightGBM", tmp_path / f"{name}.txt", 1), rows)
        expected = booster.predict(rows)
        if name == "number":
            np.testing.assert_array_equal(found["variable"][:, 0], expected)
            continue
        expected = np.column_stack([1 - expected, expected]) if name == "two" else expected
        np.testing.assert_array_equal(found["probabilities"], expected)
        np.testing.assert_array_equal(found["label"], expected.argmax(axis=1))


def test_scikit_learn(tmp_path: Path) -> None:
    names = np.array(["setosa", "versicolor", "virginica"])[SPECIES]
    for estimator in (
        RandomForestClassifier(5, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression()),
        GradientBoostingClassifier(n_estimators=2),
    ):
        trained = estimator.fit(IRIS, names)
        skops.io.dump(trained, tmp_path / "model.skops")
        found = run(load("ScikitLearn", tmp_path, 1), IRIS)
        np.testing.assert_array_equal(found["probabilities"], trained.predict_proba(IRIS))
        assert found["label"].tolist() == trained.predict(IRIS).tolist()
    skops.io.dump(StandardScaler().fit(IRIS), tmp_path / "model.skops")
    scaled = run(load("ScikitLearn", tmp_path, 1), IRIS)["variable"]
    np.testing.assert_array_equal(scaled, StandardScaler().fit_transform(IRIS))


def test_a_type_that_nobody_trusts_is_named(tmp_path: Path) -> None:
    skops.io.dump(KNeighborsClassifier().fit(IRIS, SPECIES), tmp_path / "model.skops")
    with pytest.raises(ModelError, match=r"EuclideanDistance64.*KDTree.*model\.trustedTypes") as refused:
        load("ScikitLearn", tmp_path, 1)
    types = ["sklearn.metrics._dist_metrics.EuclideanDistance64", "sklearn.neighbors._kd_tree.KDTree"]
    assert types[0] in str(refused.value)
    found = run(load("ScikitLearn", tmp_path, 1, types), IRIS)
    np.testing.assert_array_equal(found["label"], KNeighborsClassifier().fit(IRIS, SPECIES).predict(IRIS))


def test_a_tree_that_points_outside_of_itself_is_refused(tmp_path: Path) -> None:
    forest = RandomForestClassifier(2, random_state=0).fit(IRIS, SPECIES)
    tree = forest.estimators_[1].tree_
    state = tree.__getstate__()
    state["nodes"] = state["nodes"].copy()
    state["nodes"]["left_child"][0] = 10**6
    tree.__setstate__(state)
    skops.io.dump(forest, tmp_path / "model.skops")
    with pytest.raises(ModelError, match="outside of the tree"):
        load("ScikitLearn", tmp_path, 1)


def test_numbers_are_widened_and_never_narrowed(tmp_path: Path) -> None:
    xgboost.XGBRegressor(n_estimators=2, n_jobs=1).fit(DIABETES, PROGRESSION).save_model(tmp_path / "model.ubj")
    model = load("XGBoost", tmp_path, 1)
    whole = np.ones((2, 10), np.int16)
    np.testing.assert_array_equal(run(model, whole)["variable"], run(model, whole.astype(np.float32))["variable"])
    with pytest.raises(RequestError, match="'input': expected datatype FP32, found FP64"):
        run(model, DIABETES)
    with pytest.raises(RequestError, match=r"'input': expected shape \[-1, 10\].*found \[2, 9\]"):
        run(model, np.ones((2, 9), np.float32))


def pickled() -> bytes:
    return pickle.dumps(LogisticRegression().fit(IRIS, SPECIES))


def lightgbm_text() -> str:
    settings = {"objective": "regression"} | QUIET
    return str(lightgbm.train(settings, lightgbm.Dataset(IRIS, SPECIES), 3).model_to_string())


@pytest.mark.parametrize(
    ("format_", "content", "says"),
    [
        ("ScikitLearn", pickled(), "is a Python pickle .* skops"),
        ("XGBoost", pickled(), "is a Python pickle .* save_model"),
        (
            "XGBoost",
            lightgbm_text().encode(),
            "is a LightGBM model, and modelFormat is XGBoost: set modelFormat: LightG",
        ),
        ("ONNX", b"<!DOCTYPE html><html>", "is a web page, and modelFormat is ONNX: the address answers with a page"),
        ("XGBoost", b"\x08\x07nothing", "is no model that XGBoost .*save_model"),
        ("LightGBM", b"nothing", "is no model that LightGBM .*save_model"),
        ("ScikitLearn", b"nothing", "is no file of skops"),
    ],
)
def test_what_is_no_such_model_is_refused_with_the_remedy(
    tmp_path: Path, format_: str, content: bytes, says: str
) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ModelError, match=says):
        load(format_, tmp_path / "model", 1)


def test_a_damaged_file_ends_another_process_and_not_this_one(tmp_path: Path, in_another_process: None) -> None:
    (tmp_path / "model.txt").write_text(lightgbm_text().replace("num_leaves", "numleaves"))
    with pytest.raises(ModelError, match="is damaged: reading it crashed LightGBM"):
        load("LightGBM", tmp_path, 1)
    (tmp_path / "good.txt").write_text(lightgbm_text())
    assert trial.main("LightGBM", str(tmp_path / "good.txt")) == 0


def test_a_folder_without_the_file_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no model.ubj and no model.json \(it has weights.bin\)"):
        load("XGBoost", tmp_path, 1)


def test_a_file_that_is_read_for_ever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_another_process: None
) -> None:
    def hang(*_: Any, timeout: float, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("", timeout)

    monkeypatch.setattr(trial.subprocess, "run", hang)  # type: ignore[attr-defined]
    (tmp_path / "model.txt").write_text(lightgbm_text())
    with pytest.raises(ModelError, match="did not come to an end reading it in 120 s"):
        load("LightGBM", tmp_path, 1)
