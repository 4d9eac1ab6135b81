"""How a run is doing."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from headrace.api.meta import Status
from headrace.api.schema import LIST_ATOMIC, Model, list_map


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


class StepTime(Model):
    """Where the time of a step goes, in seconds, as rank 0 last reported."""

    total: str = ""
    """Seconds from one step to the next."""
    data: str = ""
    """Seconds of it that were spent waiting for data."""
    communication: str = ""
    """Seconds of it that were spent waiting for other workers' gradients."""
    compute: str = ""
    """What remains."""


class Goodput(Model):
    """Time that brought the model forward, and where the rest went; whole seconds of the whole job."""

    percent: int = 0
    """Useful time / wall time, 0 to 100."""
    useful_seconds: int = 0
    """Steps that count: those that were lost again are not among them."""
    startup_seconds: int = 0
    """From the job's start to its first step: scheduling, images, waiting for the other workers, reading data."""
    restart_seconds: int = 0
    """From the last step before a failure to the first one after it."""
    checkpoint_seconds: int = 0
    """Steps held up by checkpoints."""
    lost_step_seconds: int = 0
    """Steps after the last checkpoint before a failure, which were done again."""
    hang_seconds: int = 0
    """No step was finished and nobody had noticed yet."""
    other_seconds: int = 0
    """The rest: evaluation, export, publishing."""


class CheckpointStatus(Model):
    """The checkpoints of this attempt, as rank 0 last reported."""

    step: int = 0
    """Step of the last one that is whole in storage."""
    bytes: int = 0
    """Its size, of all workers together."""
    seconds: str = ""
    """From the moment of the state that it holds until it was whole."""
    pause_seconds: str = ""
    """How long it held training up."""


class RegisteredModel(Model):
    """The model in the registry."""

    model: str = ""
    """Its name there."""
    version: str = ""
    """Its version."""
    run_id: str = ""
    """The run that made it."""
    url: str = ""
    """Where to look at it."""


class ServerCounts(Model):
    """Parameter servers."""

    total: int = 0
    """Servers asked for."""
    ready: int = 0
    """Servers that answer."""
    summary: str = ""
    """Servers that answer / servers asked for, for kubectl get."""


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
    round_trip: str = ""
    """To the worker whose rank comes next and back, as topology.preflight measured it, such as 0.21ms."""
    bandwidth: str = ""
    """To the worker whose rank comes next, such as 940MB/s."""


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
    learning_rate: str = ""
    """Learning rate of the last reported step, four significant digits."""
    estimated_remaining_seconds: int | None = None
    """Seconds until the last step at the present pace; unset where the script did not say how many there are."""
    backend: str = ""
    """Collective library in use: gloo or nccl."""
    resumed_from_step: int | None = None
    """Step of the checkpoint that this attempt started from; unset for a fresh start."""


class LastRestart(Model):
    """The last time that the workers were started again."""

    attempt: int = 0
    """The attempt that it began."""
    reason: str = ""
    """Why, in CamelCase."""
    message: str = ""
    """Why, in words."""
    recovery_seconds: str = ""
    """Seconds from the failure to the next step; empty before that step, and for scripts that report none."""


class RequeueState(Model):
    """A group that could not be started as a whole lets go and tries again."""

    count: int = 0
    """How often in a row."""
    requeue_at: datetime | None = None
    """When it tries again."""


class TrainingJobStatus(Status):
    """How the run is doing."""

    attempt: int = 0
    """Starts of the whole group of workers, the first included."""
    pod_attempt: int = 0
    """Attempt that the pods were made for; later ones began in the same pods."""
    restarts: int = 0
    """Restarts that count against restartPolicy.maxRestarts."""
    recent_restarts: Annotated[list[datetime], Field(max_length=1000, json_schema_extra=LIST_ATOMIC)] = Field(
        default_factory=list
    )
    """When those within restartPolicy.window were."""
    last_restart: LastRestart | None = None
    """The last restart."""
    workers: WorkerCounts = Field(default_factory=WorkerCounts)
    """Workers of the current attempt."""
    servers: ServerCounts | None = None
    """Parameter servers, in topology ParameterServer."""
    removing: Annotated[list[str], Field(max_length=5000, json_schema_extra=LIST_ATOMIC)] = Field(default_factory=list)
    """UIDs of pods whose end is on record and that are being replaced, in topology ParameterServer."""
    placement: Annotated[list[WorkerPlace], Field(json_schema_extra=list_map("rank"))] = Field(default_factory=list)
    """Where each worker runs, in rank order; at most the first 64."""
    progress: Progress = Field(default_factory=Progress)
    """How far training is."""
    metrics: dict[str, str] = Field(default_factory=dict)
    """Final metrics by name, such as accuracy, as decimal text."""
    step_time: StepTime | None = None
    """Where the time of a step goes."""
    goodput: Goodput | None = None
    """Time that brought the model forward, and where the rest went."""
    checkpoint: CheckpointStatus | None = None
    """The last checkpoint."""
    registered: RegisteredModel | None = None
    """The model in the registry of spec.registry."""
    model_uri: str = ""
    """The exported model, once training succeeded."""
    storage_uri: str = ""
    """Folder with checkpoints and the model."""
    selector: str = ""
    """Label selector of the worker pods."""
    requeue_state: RequeueState | None = None
    """Set while the group has let go because only a part of it found nodes."""
    start_time: datetime | None = None
    """When the first attempt began, or the first after the last suspension."""
    completion_time: datetime | None = None
    """When the run succeeded or failed."""
