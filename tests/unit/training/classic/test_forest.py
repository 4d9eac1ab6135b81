"""A forest of trees that were grown one by one is scikit-learn's, and a tree that somebody else made is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.tree import DecisionTreeClassifier
from skops.io import dumps

from headrace.api.trainingjob import Dataset, ForestTrainer
from headrace.training.classic.forest import _loaded, forest_of, grow_tree, tree_seeds
from headrace.training.classic.rows import Rows


def grown(trainer: ForestTrainer, rows: Rows, classes: int) -> Any:
    trees = [grow_tree(trainer, rows, int(seed)) for seed in tree_seeds(trainer.seed, trainer.trees)]
    return forest_of(trainer, trees, rows, classes)


@pytest.mark.parametrize("settings", [{}, {"bootstrap": False, "max_features": "Log2"}, {"max_depth": 4}])
def test_a_classification_forest_is_scikit_learns(settings: dict[str, Any]) -> None:
    digits = load_digits()
    rows = Rows(digits.data.astype(np.float32), digits.target.astype(np.float64))
    trainer = ForestTrainer(dataset=Dataset(builtin="Digits"), trees=8, seed=3, min_samples_leaf=2, **settings)
    theirs = RandomForestClassifier(
        8,
        random_state=3,
        min_samples_leaf=2,
        bootstrap=settings.get("bootstrap", True),
        max_features=settings.get("max_features", "Sqrt").lower(),
        max_depth=settings.get("max_depth"),
    ).fit(rows.features, digits.target)
    np.testing.assert_array_equal(
        grown(trainer, rows, 10).predict_proba(rows.features), theirs.predict_proba(rows.features)
    )


def test_a_regression_forest_is_scikit_learns() -> None:
    diabetes = load_diabetes()
    rows = Rows(diabetes.data.astype(np.float32), diabetes.target.astype(np.float64))
    trainer = ForestTrainer(dataset=Dataset(builtin="Digits"), task="Regression", trees=6, max_features="All")
    theirs = RandomForestRegressor(6, random_state=0).fit(rows.features, rows.labels)
    np.testing.assert_array_equal(grown(trainer, rows, 0).predict(rows.features), theirs.predict(rows.features))


def stored(change: Any = None, tree: Any = None) -> bytes:
    digits = load_digits()
    tree = tree or DecisionTreeClassifier(max_depth=3).fit(digits.data[:, :8], digits.target)
    if change:
        state = tree.tree_.__getstate__()
        change(state["nodes"])
        tree.tree_.__setstate__(state)
    return bytes(dumps([tree]))


def test_trees_come_back_from_storage() -> None:
    (tree,) = _loaded(stored(), 8)
    assert tree.predict(load_digits().data[:3, :8]).shape == (3,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nodes: nodes["left_child"].__setitem__(0, 10_000), "point outside of the tree"),
        (lambda nodes: nodes["right_child"].__setitem__(1, 0), "point outside of the tree"),
        (lambda nodes: nodes["feature"].__setitem__(0, 99), "columns that the data do not have"),
    ],
)
def test_a_tree_that_would_be_followed_out_of_bounds_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _loaded(stored(change), 8)


def test_what_is_no_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="holds a RandomForestClassifier"):
        _loaded(stored(tree=RandomForestClassifier(1).fit([[0], [1]], [0, 1])), 1)
