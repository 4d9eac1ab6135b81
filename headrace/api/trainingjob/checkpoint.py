"""What is saved of a run, when, and where."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headrace.api.meta import LocalReference
from headrace.api.schema import Duration, Model, StorageURI


class Checkpoint(Model):
    """When the state of a run is saved, and how much of it is kept."""

    interval: Duration = "30s"
    """Least time between two checkpoints."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """Checkpoints kept; older ones are removed."""


class Storage(Model):
    """Where checkpoints and the model go."""

    uri: StorageURI
    """Folder of this run."""
    secret_ref: LocalReference | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL and AWS_REGION where needed."""
