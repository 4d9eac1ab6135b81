"""How a run is doing."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from headrace.api.meta import Status
from headrace.api.schema import Model, list_map


class WorkerCounts(Model):
    """Workers of the current attempt."""

    total: int = 0
    """Workers asked for."""
    ready: int = 0
    """Workers running."""
    succeeded: int = 0
    """Workers that finished."""
    summary: str = ""
    """Workers that run or finished / workers asked for, for kubectl get."""


class WorkerPlace(Model):
    """Where one worker runs."""

    rank: int
    """Rank of the worker's first process."""
    pod: str
    """Name of the pod."""
    node: str = ""
    """Name of the node."""
    zone: str = ""
    """Zone of the node."""


class Progress(Model):
    """How far training is, as rank 0 last reported."""

    epoch: int = 0
    """Epochs finished."""
    epochs: int = 0
    """Epochs in all; 0 when the script did not say."""
    step: int = 0
    """Optimiser steps finished."""
    steps: int = 0
    """Optimiser steps in all; 0 when the script did not say."""
    percent: int = 0
    """Share of steps finished, 0 to 100."""
    loss: str = ""
    """Training loss of the last reported step, four significant digits."""
    throughput: str = ""
    """Samples per second over all workers, three significant digits."""
    backend: str = ""
    """Collective library in use: gloo or nccl."""
    resumed_from_step: int | None = None
    """Step of the checkpoint that this attempt started from; unset for a fresh start."""


class TrainingJobStatus(Status):
    """How the run is doing."""

    attempt: int = 0
    """Starts of the whole group of workers, the first included."""
    restarts: int = 0
    """Restarts that count against restartPolicy.maxRestarts."""
    workers: WorkerCounts = Field(default_factory=WorkerCounts)
    """Workers of the current attempt."""
    placement: Annotated[list[WorkerPlace], Field(json_schema_extra=list_map("rank"))] = Field(default_factory=list)
    """Where each worker runs, in rank order; at most the first 64."""
    progress: Progress = Field(default_factory=Progress)
    """How far training is."""
    metrics: dict[str, str] = Field(default_factory=dict)
    """Final metrics by name, such as accuracy, as decimal text."""
    model_uri: str = ""
    """The exported model, once training succeeded."""
    storage_uri: str = ""
    """Folder with checkpoints and the model."""
    selector: str = ""
    """Label selector of the worker pods."""
    start_time: datetime | None = None
    """When the first attempt began."""
    completion_time: datetime | None = None
    """When the run succeeded or failed."""
