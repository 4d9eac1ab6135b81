"""TrainingJob: a distributed training run that survives its pods."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from headrace.api.meta import KeyReference, LocalReference, PodOptions, Resource, Status
from headrace.api.schema import (
    LIST_ATOMIC,
    Column,
    Duration,
    ImageName,
    KindInfo,
    Model,
    Rule,
    StorageURI,
    list_map,
    name_rules,
    remedy,
    rules,
)

RESERVED_ENV = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "POD_NAME",
    "POD_NAMESPACE",
    "HEADRACE_JOB",
    "HEADRACE_RUN_ID",
    "HEADRACE_ATTEMPT",
    "HEADRACE_CLASSIFIER",
    "HEADRACE_STORAGE_URI",
    "HEADRACE_CHECKPOINT_INTERVAL",
    "HEADRACE_CHECKPOINT_KEEP",
    "PET_NNODES",
    "PET_NODE_RANK",
    "PET_NPROC_PER_NODE",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
)
"""Environment of a worker that the job itself sets."""

MAX_NAME_LENGTH = 63 - len("-worker-4095")
"""A pod's name is its host name, at most 63 characters (RFC 1123)."""


def _inside_repository(path: str) -> str:
    if ".." in path:
        raise ValueError(f"{path} leaves the repository: write the file's path from the repository's root")
    return path


def _fixed(*fields: str) -> tuple[Rule, ...]:
    """Transition rules: these fields stay as they were, for the workers that run were made from them."""
    return tuple(
        Rule(
            f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
            f"{field} cannot change once the job exists, its workers are made from it: "
            "create a TrainingJob with another name, or delete this one first",
            f".{field}",
        )
        for field in fields
    )


Argument = Annotated[str, Field(max_length=131_072)]
"""One word of a command line, at most what Linux takes (MAX_ARG_STRLEN)."""


class GPU(Model):
    """GPUs of each worker."""

    count: Annotated[int, Field(ge=1, le=16)] = 1
    """GPUs of each worker; one process is started per GPU."""
    product: Annotated[str, Field(max_length=63)] | None = None
    """Product that the node must have, as the GPU operator labels it in nvidia.com/gpu.product."""
    resource_name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$",
            max_length=253,
            json_schema_extra=remedy(
                r"self.matches(r'^[a-z0-9.-]+/[a-zA-Z0-9._-]+$')",
                "write an extended resource such as nvidia.com/gpu or amd.com/gpu",
            ),
        ),
    ] = "nvidia.com/gpu"
    """Extended resource that the device plugin offers."""


class Topology(Model):
    """How the workers exchange gradients and where they sit."""

    type: Literal["AllReduce"] = "AllReduce"
    """AllReduce: every worker holds the whole model, gradients are averaged after each backward pass."""
    all_reduce: Literal["Ring"] = "Ring"
    """Algorithm of the all-reduce."""
    zone_spread: Literal["Spread", "Pack", "None"] = "Spread"
    """Spread: workers are balanced over zones. Pack: workers share a zone where they fit. None: no preference."""


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


@rules(
    Rule(
        "!has(self.secretRef) || self.repo.startsWith('https://')",
        "secretRef holds a user name and password, which only https:// takes: change repo or leave secretRef out",
        ".secretRef",
        lambda git: git.secret_ref is None or git.repo.startswith("https://"),
    )
)
class GitSource(Model):
    """A file in a git repository."""

    repo: Annotated[
        str,
        Field(
            pattern=r"^(https?|ssh|git|file)://[^\s]+$",
            max_length=1024,
            json_schema_extra=remedy(
                r"self.matches(r'^(https?|ssh|git|file)://[^\s]+$')",
                "write a repository's URL such as https://git.example/team/models.git",
            ),
        ),
    ]
    """URL of the repository."""
    ref: Annotated[
        str,
        Field(
            pattern=r"^[^-\s][^\s]*$",
            min_length=1,
            max_length=253,
            json_schema_extra=remedy(r"self.matches(r'^[^-\s][^\s]*$')", "write a branch, a tag or a commit"),
        ),
    ] = "HEAD"
    """Branch, tag or commit; a commit makes the run repeatable."""
    path: Annotated[
        str,
        Field(
            pattern=r"^[^/.\s][^\s]*$",
            min_length=1,
            max_length=1024,
            json_schema_extra=remedy(
                r"self.matches(r'^[^/.\s][^\s]*$') && !self.contains('..')",
                "write the file's path from the repository's root, such as training/train.py",
            ),
        ),
        AfterValidator(_inside_repository),
    ]
    """File to run, from the repository's root."""
    secret_ref: LocalReference | None = None
    """Secret with `username` and `password` for https."""


@rules(
    Rule(
        "[has(self.configMap), has(self.git), has(self.path)].filter(x, x).size() == 1",
        "script: set exactly one of configMap, git and path (a file inside the image)",
        check=lambda script: [script.config_map, script.git, script.path].count(None) == 2,
    )
)
class Script(Model):
    """A Python file to run on every worker under torchrun's environment."""

    config_map: KeyReference | None = None
    """The file is a key of a ConfigMap."""
    git: GitSource | None = None
    """The file is in a git repository, cloned before the worker starts."""
    path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """The file is inside the image."""


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


class RestartPolicy(Model):
    """How often a failed run is started again from its last checkpoint."""

    max_restarts: Annotated[int, Field(ge=0, le=10_000)] = 10
    """Restarts after a worker's own failure (lost nodes, evictions and deleted pods are not counted)."""


@rules(
    Rule(
        "[has(self.classifier), has(self.script), has(self.command)].filter(x, x).size() == 1",
        "set exactly one of classifier (built-in trainer), script and command",
        check=lambda spec: [spec.classifier, spec.script, spec.command].count(None) == 2,
    ),
    Rule(
        "!has(self.command) || has(self.image)",
        "command needs an image to run in: set image",
        ".image",
        lambda spec: spec.command is None or spec.image is not None,
    ),
    Rule(
        "!has(self.script) || !has(self.script.path) || has(self.image)",
        "script.path is a file inside the image: set image",
        ".image",
        lambda spec: spec.script is None or spec.script.path is None or spec.image is not None,
    ),
    Rule(
        "!has(self.classifier) || !has(self.args) || self.args.size() == 0",
        "the built-in trainer takes no arguments: set the fields of classifier, or move args to a script",
        ".args",
        lambda spec: spec.classifier is None or not spec.args,
    ),
    Rule(
        "!has(self.classifier) || self.classifier.batchSize >= self.numWorkers * (has(self.gpu) ? self.gpu.count : 1)",
        "classifier.batchSize is shared by all processes, and each needs a row: "
        "raise it to numWorkers (times gpu.count), or ask for fewer workers",
        ".classifier",
        lambda spec: spec.classifier is None or spec.classifier.batch_size >= spec.processes,
    ),
    Rule(
        "!has(self.gpu) || !has(self.resources) || "
        "((!has(self.resources.limits) || !(self.gpu.resourceName in self.resources.limits)) && "
        "(!has(self.resources.requests) || !(self.gpu.resourceName in self.resources.requests)))",
        "the GPU resource is set by gpu.count: remove it from resources",
        ".resources",
        lambda spec: (
            spec.gpu is None or spec.gpu.resource_name not in {**spec.resources.limits, **spec.resources.requests}
        ),
    ),
    Rule(
        f"!has(self.env) || self.env.all(e, !(e.name in [{', '.join(repr(name) for name in RESERVED_ENV)}]))",
        "the job itself sets torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, PET_NNODES, …), POD_NAME, "
        "POD_NAMESPACE and those of its run (HEADRACE_JOB, HEADRACE_STORAGE_URI, …): remove them from env",
        ".env",
        lambda spec: not {variable.name for variable in spec.env} & set(RESERVED_ENV),
    ),
    *_fixed(
        "numWorkers",
        "image",
        "classifier",
        "script",
        "command",
        "args",
        "gpu",
        "topology",
        "storage",
        "checkpoint",
        "resources",
        "env",
        "nodeSelector",
        "tolerations",
        "affinity",
        "imagePullSecrets",
        "priorityClassName",
        "serviceAccountName",
    ),
)
class TrainingJobSpec(PodOptions):
    """What to train, on how many workers, and where its results go."""

    num_workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Worker pods."""
    image: ImageName | None = None
    """Container image; by default the trainer image of this release, with PyTorch."""
    classifier: ClassifierTrainer | None = None
    """Built-in trainer for classification."""
    script: Script | None = None
    """Your own PyTorch script."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=256, json_schema_extra=LIST_ATOMIC)] | None = None
    """Your own entry point, run as it is under torchrun's environment."""
    args: Annotated[list[Argument], Field(max_length=1024, json_schema_extra=LIST_ATOMIC)] = Field(default_factory=list)
    """Arguments of the script or command."""
    gpu: GPU | None = None
    """GPUs of each worker; without it training runs on CPU with gloo."""
    topology: Topology = Field(default_factory=Topology)
    """How the workers exchange gradients and where they sit."""
    storage: Storage | None = None
    """Where checkpoints and the model go; by default s3://headrace/<namespace>/<name> in the embedded store."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    """When the state of a run is saved."""
    restart_policy: RestartPolicy = Field(default_factory=RestartPolicy)
    """How often a failed run is started again; the one field that may change while the job runs."""

    @property
    def processes(self) -> int:
        """Processes of the whole group: one per worker, or one per GPU."""
        return self.num_workers * (self.gpu.count if self.gpu else 1)


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


@rules(*name_rules(MAX_NAME_LENGTH, "<name>-worker-<rank>"))
class TrainingJob(Resource):
    """A distributed training run: workers in one or more zones, checkpoints in storage, a model at the end."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="TrainingJob",
        plural="trainingjobs",
        singular="trainingjob",
        short_names=("tj",),
        columns=(
            Column(
                "Workers", ".status.workers.summary", description="Workers that run or finished, of workers asked for"
            ),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
            Column("Progress", ".status.progress.percent", "integer", description="Percent of steps finished"),
            Column("Epoch", ".status.progress.epoch", "integer"),
            Column("Loss", ".status.progress.loss"),
            Column("Samples/s", ".status.progress.throughput", priority=1),
            Column("Restarts", ".status.restarts", "integer", priority=1),
            Column("Model", ".status.modelUri", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )
    spec: TrainingJobSpec
    status: TrainingJobStatus | None = None
