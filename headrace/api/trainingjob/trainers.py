"""The built-in trainers, and the data that they read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.schema import LIST_ATOMIC, Model, Rule, StorageURI, rules


@rules(
    Rule(
        "has(self.uri) != has(self.builtin)",
        "dataset: set exactly one of uri (files in storage) and builtin (a data set that the trainer ships)",
        check=lambda dataset: (dataset.uri is None) != (dataset.builtin is None),
    )
)
class Dataset(Model):
    """Training data of the built-in trainer."""

    builtin: Literal["Digits"] | None = None
    """A data set that the trainer image ships. Digits: the UCI handwritten digits, 1797 images of 8x8."""
    uri: StorageURI | None = None
    """Parquet file or folder; numeric columns are features."""
    label_column: Annotated[str, Field(min_length=1, max_length=253)] = "label"
    """Column with the integer class, 0 to K-1."""
    test_fraction: Annotated[float, Field(ge=0.0, le=0.9)] = 0.2
    """Share of rows kept for the test metrics; the split is fixed by `seed`."""


class ClassifierTrainer(Model):
    """Built-in trainer: a multilayer perceptron classifier trained with cross-entropy."""

    dataset: Dataset
    """What to train on."""
    hidden_sizes: Annotated[
        list[Annotated[int, Field(ge=1, le=65536)]], Field(max_length=16, json_schema_extra=LIST_ATOMIC)
    ] = Field(default_factory=lambda: [64])
    """Units of each hidden layer."""
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Passes over the training rows."""
    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 64
    """Rows of one optimiser step over all workers together."""
    learning_rate: Annotated[float, Field(gt=0.0, le=100.0)] = 0.001
    """Step size of the optimiser."""
    optimizer: Literal["Adam", "SGD"] = "Adam"
    """Adam: AdamW without decay. SGD: with momentum 0.9."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    """Seeds the split, the order of rows and the first weights."""
