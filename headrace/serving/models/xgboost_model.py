"""XGBoost's own format (UBJSON or JSON), answered by XGBoost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.serving.models.base import ModelError, one_line
from headrace.serving.models.table import (
    LABEL,
    PROBABILITIES,
    VARIABLE,
    TableModel,
    classes_of,
    two_classes,
)
from headrace.serving.protocol import TensorSpec
from headrace.serving.tensors import Array

PLATFORM = "xgboost_xgboost"


def load(file: Path, threads: int) -> TableModel:
    """The model in a file. NaN is a missing value. A model that stopped early answers with its best rounds, as
    XGBClassifier and XGBRegressor do.

    Raises:
        ModelError: it is no such file.
    """
    import xgboost

    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(file.read_bytes()))
        booster.set_param({"nthread": threads, "device": "cpu"})
        learner: dict[str, Any] = json.loads(booster.save_config())["learner"]
        columns = int(booster.num_features())
    except (xgboost.core.XGBoostError, ValueError, KeyError) as error:
        raise ModelError(
            f"is no model that XGBoost {xgboost.__version__} can load: {one_line(error)}; write it with "
            "Booster.save_model('model.ubj')"
        ) from error
    best = booster.attr("best_iteration")
    rounds = (0, int(best) + 1) if best is not None else (0, 0)
    in_place = learner.get("gradient_booster", {}).get("name") != "gblinear"

    def predict(rows: Array) -> Array:
        if in_place:
            found: Array = booster.inplace_predict(rows, iteration_range=rounds, validate_features=False)
        else:
            matrix = xgboost.DMatrix(rows, nthread=threads)
            found = booster.predict(matrix, iteration_range=rounds, validate_features=False)
        return found

    return _as_table(str(learner["objective"]["name"]), learner, columns, predict)


def _as_table(objective: str, learner: Mapping[str, Any], columns: int, predict: Any) -> TableModel:
    label = TensorSpec(LABEL, "INT64", (-1,))
    if objective == "multi:softmax":

        def labels(rows: Array, wanted: Sequence[str]) -> Mapping[str, Array]:
            return {LABEL: predict(rows).astype(np.int64)}

        return TableModel(PLATFORM, "FP32", columns, (label,), labels)
    if objective in ("binary:logistic", "multi:softprob"):
        binary = objective == "binary:logistic"
        classes = 2 if binary else int(learner["learner_model_param"]["num_class"])

        def classify(rows: Array, wanted: Sequence[str]) -> Mapping[str, Array]:
            found = two_classes(predict(rows)) if binary else predict(rows)
            return {LABEL: classes_of(found), PROBABILITIES: found}

        shape = TensorSpec(PROBABILITIES, "FP32", (-1, classes))
        return TableModel(PLATFORM, "FP32", columns, (label, shape), classify)
    targets = max(int(learner["learner_model_param"].get("num_target", 1)), 1)

    def numbers(rows: Array, wanted: Sequence[str]) -> Mapping[str, Array]:
        return {VARIABLE: predict(rows).reshape(len(rows), -1)}

    return TableModel(PLATFORM, "FP32", columns, (TensorSpec(VARIABLE, "FP32", (-1, targets)),), numbers)
