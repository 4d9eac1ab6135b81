"""The built-in trainers of the classic algorithms."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.schema import Model, Rule, StorageURI, rules
from headrace.api.trainingjob.trainers import Dataset

Seed = Annotated[int, Field(ge=0, le=2_147_483_647)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Column = Annotated[str, Field(min_length=1, max_length=253)]


@rules(
    Rule(
        "!has(self.earlyStoppingRounds) || self.dataset.testFraction > 0.0",
        "earlyStoppingRounds judges by the test rows: set dataset.testFraction above 0, or remove earlyStoppingRounds",
        ".earlyStoppingRounds",
        lambda boosting: boosting.early_stopping_rounds is None or boosting.dataset.test_fraction > 0,
    ),
)
class BoostingTrainer(Model):
    """Built-in trainer: gradient boosted trees, with the rows spread over the workers."""

    dataset: Dataset
    """What to train on; each worker reads its part of the rows. A null is a missing value."""
    library: Literal["XGBoost", "LightGBM"] = "XGBoost"
    """Who builds the trees; both add up histograms over workers by their own collectives."""
    objective: Literal["Logistic", "Softmax", "SquaredError"] = "Logistic"
    """Logistic: two classes, 0 and 1. Softmax: classes 0 to K-1. SquaredError: the label is a number."""
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Boosting rounds: one tree each, or one per class."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Shrinks the contribution of each tree."""
    max_depth: Annotated[int, Field(ge=0, le=64)] = 6
    """Depth of a tree; 0 for no limit."""
    num_leaves: Annotated[int, Field(ge=2, le=131_072)] | None = None
    """Leaves of a tree, which then grows where the loss falls most. By default 31 with LightGBM; XGBoost grows level by
    level then."""
    min_child_weight: Annotated[float, Field(ge=0.0, le=1e9)] = 1.0
    """Least sum of second derivatives in a leaf."""
    l2: Annotated[float, Field(ge=0.0, le=1e9)] = 1.0
    """L2 penalty on leaf values."""
    subsample: Share = 1.0
    """Share of rows that each tree sees."""
    feature_fraction: Share = 1.0
    """Share of columns that each tree sees."""
    max_bins: Annotated[int, Field(ge=2, le=65_535)] = 255
    """Bins of each column's histogram."""
    early_stopping_rounds: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Stop when the loss of the test rows has not fallen for so many rounds, and keep the best."""
    seed: Seed = 0
    """Seeds the split and the sampling."""


class ForestTrainer(Model):
    """Built-in trainer: a random forest whose trees are spread over the workers."""

    dataset: Dataset
    """What to train on; every worker holds all rows."""
    task: Literal["Classification", "Regression"] = "Classification"
    """Classification: the label is a class, 0 to K-1. Regression: it is a number."""
    trees: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Trees of the forest, over all workers."""
    max_depth: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Depth of a tree; by default a tree grows until its leaves are pure."""
    min_samples_leaf: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Least rows in a leaf."""
    max_features: Literal["Sqrt", "Log2", "All"] = "Sqrt"
    """Columns that each split chooses from."""
    bootstrap: bool = True
    """Each tree sees as many rows as there are, drawn with replacement."""
    seed: Seed = 0
    """Seeds the split and the trees; the forest does not depend on the number of workers."""


@rules(
    Rule(
        "self.objective == 'Implicit' || !has(self.alpha)",
        "alpha weighs implicit feedback: set objective to Implicit or remove alpha",
        ".alpha",
        lambda factorization: factorization.objective == "Implicit" or factorization.alpha is None,
    ),
)
class MatrixFactorizationTrainer(Model):
    """Built-in trainer: matrix factorisation by alternating least squares, users and items spread over the workers."""

    uri: StorageURI
    """Parquet file or folder with one row per rating, or per user and item that met."""
    user_column: Column = "user"
    """Column with the user, an integer."""
    item_column: Column = "item"
    """Column with the item, an integer."""
    rating_column: Column = "rating"
    """Column with the rating, or with the strength of the feedback (such as how often)."""
    objective: Literal["Explicit", "Implicit"] = "Explicit"
    """Explicit: squared error of the ratings (Zhou et al. 2008). Implicit: confidence 1 + alpha * strength that a
    user likes an item, and 1 that a user does not where nothing is known (Hu, Koren and Volinsky 2008)."""
    factors: Annotated[int, Field(ge=1, le=1024)] = 64
    """Numbers per user and item."""
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 15
    """Times that users and then items are solved."""
    regularization: Annotated[float, Field(gt=0.0, le=1e6)] = 0.1
    """L2 penalty on the factors."""
    regularize_by_count: bool = True
    """The penalty of a user or an item grows with its number of ratings, as in Spark MLlib."""
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """Weight of a unit of implicit feedback; by default 1."""
    test_fraction: Annotated[float, Field(ge=0.0, le=0.9)] = 0.2
    """Share of rows kept for the test metrics; the split is fixed by `seed`."""
    seed: Seed = 0
    """Seeds the split and the first factors."""


class LogisticRegressionTrainer(Model):
    """Built-in trainer: multinomial logistic regression by L-BFGS, gradients summed over the workers."""

    dataset: Dataset
    """What to train on; each worker reads its part of the rows."""
    l2: Annotated[float, Field(ge=0.0, le=1e9)] = 1.0
    """L2 penalty on the coefficients against the summed loss: 1/C of scikit-learn. The intercept is free."""
    standardize: bool = True
    """Bring every column to mean 0 and variance 1 first, which is then a part of the model."""
    max_iterations: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Steps of L-BFGS at most."""
    tolerance: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    """Largest component of the mean loss's gradient at which training ends; scikit-learn's default."""
    seed: Seed = 0
    """Seeds the split."""
