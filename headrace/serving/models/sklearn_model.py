"""scikit-learn by skops: the types in the file are known before any of them is made, and no code of the file runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.serving.models.base import ModelError, one_line
from headrace.serving.models.table import LABEL, PROBABILITIES, VARIABLE, TableModel
from headrace.serving.models.trees import check_tree
from headrace.serving.protocol import TensorSpec
from headrace.serving.tensors import Array, RequestError

PLATFORM = "sklearn_skops"
TREE = "sklearn.tree._tree.Tree"
"""Not one of skops' own trusted types, since its nodes are followed without looking; here they are looked at first."""
_NAMES = {"b": "BOOL", "i": "INT64", "u": "INT64", "f": "FP64", "U": "BYTES", "O": "BYTES"}
"""Datatype of labels by numpy's kind."""


def load(file: Path, threads: int, trusted: Sequence[str] = ()) -> TableModel:
    """The estimator or pipeline in a file.

    Args:
        file: Written by `skops.io.dump`.
        threads: Unused: within one run scikit-learn follows what the estimator's `n_jobs` says.
        trusted: Types to take besides those that skops knows to be harmless, by full name.

    Raises:
        ModelError: it is no such file, or has a type that nobody said to trust.
    """
    import sklearn
    from skops.io import get_untrusted_types
    from skops.io import load as load_skops

    try:
        unknown = [name for name in get_untrusted_types(file=file) if name not in (TREE, *trusted)]
    except Exception as error:
        raise ModelError(f"is no file of skops: {one_line(error)}; write it with skops.io.dump") from error
    if unknown:
        raise ModelError(
            f"has the type {unknown[0]}{_more(unknown)}, which is not known to be harmless; if you trust who wrote "
            "the file, name it in model.trustedTypes, or convert the model to ONNX"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator = load_skops(file, trusted=[TREE, *trusted])
        for tree in _trees(estimator):
            check_tree(tree)
    except Exception as error:
        raise ModelError(
            f"cannot be loaded by scikit-learn {sklearn.__version__}: {one_line(error)}; write it again with this "
            "version"
        ) from error
    return _as_table(estimator)


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more: {', '.join(names[1:6])})" if len(names) > 1 else ""


def _trees(estimator: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Every tree in an estimator and what it is made of."""
    from sklearn.tree._tree import Tree

    seen = set() if seen is None else seen
    if id(estimator) in seen:
        return
    seen.add(id(estimator))
    if isinstance(estimator, Tree):
        yield estimator
    elif isinstance(estimator, np.ndarray):
        if estimator.dtype == object:
            for item in estimator.ravel():
                yield from _trees(item, seen)
    elif isinstance(estimator, Mapping):
        for item in estimator.values():
            yield from _trees(item, seen)
    elif isinstance(estimator, (list, tuple, set)):
        for item in estimator:
            yield from _trees(item, seen)
    elif hasattr(estimator, "__dict__"):
        yield from _trees(vars(estimator), seen)


def _as_table(estimator: Any) -> TableModel:
    columns = int(getattr(estimator, "n_features_in_", -1))

    def quietly(method: Any, rows: Array) -> Array:
        try:
            with warnings.catch_warnings():
                # An estimator fitted on named columns warns of every matrix.
                warnings.simplefilter("ignore")
                return _dense(method(rows))
        except ValueError as error:
            raise RequestError(f"the model refuses the input: {one_line(error)}") from error

    classes = getattr(estimator, "classes_", None)
    if classes is not None and not isinstance(classes, list):
        labels = np.asarray(classes)
        outputs = [TensorSpec(LABEL, _NAMES.get(labels.dtype.kind, "BYTES"), (-1,))]
        if hasattr(estimator, "predict_proba"):
            outputs.append(TensorSpec(PROBABILITIES, "FP64", (-1, len(labels))))

        def classify(rows: Array, wanted: Sequence[str]) -> Mapping[str, Array]:
            found = {}
            if LABEL in wanted:
                found[LABEL] = _labels(quietly(estimator.predict, rows))
            if PROBABILITIES in wanted:
                found[PROBABILITIES] = quietly(estimator.predict_proba, rows).astype(np.float64)
            return found

        return TableModel(PLATFORM, "FP64", columns, tuple(outputs), classify)
    method = getattr(estimator, "predict", None) or getattr(estimator, "transform", None)
    if method is None or isinstance(classes, list):
        raise ModelError(
            f"holds a {type(estimator).__name__}, which neither predicts one target nor transforms; serve an "
            "estimator or a pipeline that does, or convert it to ONNX"
        )
    sample = _sample(method, columns, quietly)
    whole = sample is not None and sample.dtype.kind in "iu" and sample.ndim == 1
    name = LABEL if whole else VARIABLE

    def numbers(rows: Array, wanted: Sequence[str]) -> Mapping[str, Array]:
        found = quietly(method, rows)
        return {name: found.astype(np.int64) if whole else found.astype(np.float64).reshape(len(rows), -1)}

    width = 1 if sample is None or sample.ndim == 1 else sample.shape[1]
    spec = (
        TensorSpec(name, "INT64", (-1,))
        if whole
        else TensorSpec(name, "FP64", (-1, width if sample is not None else -1))
    )
    return TableModel(PLATFORM, "FP64", columns, (spec,), numbers)


def _sample(method: Any, columns: int, quietly: Any) -> Array | None:
    """The answer for one row of zeros; None where the model does not take one."""
    if columns < 0:
        return None
    try:
        found: Array = quietly(method, np.zeros((1, columns)))
    except RequestError:
        return None
    return found


def _dense(found: Any) -> Array:
    return np.asarray(found.toarray() if hasattr(found, "toarray") else found)


def _labels(found: Array) -> Array:
    kind = found.dtype.kind
    if kind in "iu":
        return found.astype(np.int64)
    if kind in "bf":
        return found if kind == "b" else found.astype(np.float64)
    return np.array([str(item) for item in found.tolist()], dtype=object)
