"""Servers that hold the model while workers push gradients and pull weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.meta import Resources
from headrace.api.schema import Model, Rule, rules


@rules(
    Rule(
        "self.type == 'TopK' || !has(self.ratio)",
        "compression.ratio is the share of values that TopK keeps: set type TopK or remove ratio",
        ".ratio",
        lambda compression: compression.type == "TopK" or compression.ratio is None,
    ),
    Rule(
        "self.type == 'PowerSGD' || !has(self.rank)",
        "compression.rank is that of PowerSGD's matrices: set type PowerSGD or remove rank",
        ".rank",
        lambda compression: compression.type == "PowerSGD" or compression.rank is None,
    ),
    Rule(
        "self.type != 'None' || !self.weights",
        "compression.weights says that weights are compressed like gradients: choose a type or remove weights",
        ".weights",
        lambda compression: compression.type != "None" or not compression.weights,
    ),
)
class Compression(Model):
    """How gradients are made smaller before they are sent."""

    type: Literal["None", "TopK", "PowerSGD", "FP16", "Int8"] = "None"
    """TopK: the largest values only. PowerSGD: two narrow matrices per tensor. FP16, Int8: fewer bits per value, Int8
    rounded at random so that the mean is kept. What TopK and PowerSGD leave out is sent later (error feedback)."""
    ratio: Annotated[float, Field(gt=0.0, le=0.5)] | None = None
    """Share of values that TopK sends, 0.01 if unset; each takes 8 bytes instead of 4."""
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    """Columns of PowerSGD's two matrices, 2 if unset."""
    weights: bool = False
    """Compress weights on their way to the workers too, as differences to what the worker has; costs each server one
    copy of its part of the model per worker."""


@rules(
    Rule(
        "self.consistency == 'StaleSynchronous' ? has(self.staleness) : !has(self.staleness)",
        "parameterServer.staleness bounds how far a worker may run ahead in consistency StaleSynchronous: "
        "set it there, and remove it elsewhere",
        ".staleness",
        lambda spec: (spec.consistency == "StaleSynchronous") == (spec.staleness is not None),
    ),
    Rule(
        "self.consistency == 'Synchronous' || self.backupWorkers == 0",
        "parameterServer.backupWorkers are the slowest that a Synchronous round does not wait for: "
        "set consistency Synchronous or remove backupWorkers",
        ".backupWorkers",
        lambda spec: spec.consistency == "Synchronous" or spec.backup_workers == 0,
    ),
    Rule(
        "self.consistency != 'Synchronous' || (self.pushEvery == 1 && self.pullEvery == 1)",
        "Synchronous workers push and pull at every step: remove pushEvery and pullEvery, or choose Asynchronous",
        ".pushEvery",
        lambda spec: spec.consistency != "Synchronous" or (spec.push_every == 1 and spec.pull_every == 1),
    ),
    Rule(
        "self.consistency != 'StaleSynchronous' || self.pushEvery == self.pullEvery",
        "in StaleSynchronous a clock is one push and one pull, or the bound would not hold between them: "
        "set pullEvery to pushEvery",
        ".pullEvery",
        lambda spec: spec.consistency != "StaleSynchronous" or spec.push_every == spec.pull_every,
    ),
)
class ParameterServer(Model):
    """Servers that hold the model, and how far workers may drift apart."""

    servers: Annotated[int, Field(ge=1, le=256)] = 1
    """Server pods; each holds an equal part of the model's values."""
    consistency: Literal["Asynchronous", "StaleSynchronous", "Synchronous"] = "Asynchronous"
    """Asynchronous: no worker waits for another. StaleSynchronous: the fastest is at most staleness clocks ahead of the
    slowest. Synchronous: all workers take each step together."""
    push_every: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Steps whose gradients are summed before they are sent."""
    pull_every: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Steps between two looks at the servers' weights. With SGD a worker follows its own gradients in between."""
    staleness: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Clocks (pushes) that a worker may be ahead of the slowest before it waits; only in StaleSynchronous."""
    backup_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Slowest workers of each round that it does not wait for; what they send too late is dropped. Only in
    Synchronous."""
    optimizer: Literal["SGD", "Adagrad", "Adam"] = "Adagrad"
    """What the servers do with gradients, in place of classifier.optimizer. SGD is without momentum, which
    asynchrony itself adds."""
    compression: Compression = Field(default_factory=Compression)
    """How gradients are made smaller before they are sent."""
    resources: Resources | None = None
    """Compute resources of each server; by default those of a worker, without its GPUs."""
