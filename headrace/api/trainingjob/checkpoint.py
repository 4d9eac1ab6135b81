"""What is saved of a run, when, and where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.meta import LocalReference
from headrace.api.schema import Duration, Model, StorageURI


class Best(Model):
    """The checkpoint that is kept besides the last ones."""

    metric: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of a number that the script gives to checkpoints.save; the built-in trainer gives loss."""
    mode: Literal["Min", "Max"] = "Min"
    """Min: the least value is the best. Max: the greatest."""


class Checkpoint(Model):
    """When the state of a run is saved, and how much of it is kept."""

    interval: Duration = "30s"
    """Least time between two checkpoints."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """Checkpoints kept; older ones are removed."""
    best: Best | None = None
    """Also keep the checkpoint with the best value of a metric."""
    writers: Literal["RankZero", "AllRanks"] = "RankZero"
    """Who writes tensors that every worker has alike. AllRanks: each worker an equal part of them, faster where models
    are large. Shards of a spread model are always written by the workers that have them."""


class Storage(Model):
    """Where checkpoints and the model go."""

    uri: StorageURI
    """Folder of this run."""
    secret_ref: LocalReference | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL and AWS_REGION where needed."""
