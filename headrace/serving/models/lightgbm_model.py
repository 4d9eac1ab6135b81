"""LightGBM's own format (text), answered by LightGBM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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

PLATFORM = "lightgbm_lightgbm"


def load(file: Path, threads: int) -> TableModel:
    """The model in a file. NaN is a missing value where the model was trained so.

    Raises:
        ModelError: it is no such file.
    """
    import lightgbm

    try:
        text = file.read_text()
        booster = lightgbm.Booster(model_str=text)
    except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
        raise ModelError(
            f"is no model that LightGBM {lightgbm.__version__} can load: {one_line(error)}; write it with "
            "Booster.save_model('model.txt')"
        ) from error
    objective = next((line.partition("=")[2] for line in text.splitlines() if line.startswith("objective=")), "")
    per_round = int(booster.num_model_per_iteration())

    def predict(rows: Array) -> Array:
        return np.asarray(booster.predict(rows, num_threads=threads))

    columns = int(booster.num_feature())
    if objective.split(" ")[0] in ("binary", "multiclass", "multiclassova"):
        binary = objective.startswith("binary")

        def classify(rows: Array, wanted: Sequence[str]) -> Mapping[str, Array]:
            found = two_classes(predict(rows)) if binary else predict(rows)
            return {LABEL: classes_of(found), PROBABILITIES: found}

        outputs = (
            TensorSpec(LABEL, "INT64", (-1,)),
            TensorSpec(PROBABILITIES, "FP64", (-1, 2 if binary else per_round)),
        )
        return TableModel(PLATFORM, "FP64", columns, outputs, classify)

    def numbers(rows: Array, wanted: Sequence[str]) -> Mapping[str, Array]:
        return {VARIABLE: predict(rows).reshape(len(rows), -1)}

    return TableModel(PLATFORM, "FP64", columns, (TensorSpec(VARIABLE, "FP64", (-1, per_round)),), numbers)
