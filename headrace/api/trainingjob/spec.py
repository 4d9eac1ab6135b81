"""The spec of a TrainingJob, and the rules between its fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.meta import PodOptions
from headrace.api.schema import LIST_ATOMIC, ImageName, Model, Rule, list_map, once, rules
from headrace.api.trainingjob.checkpoint import Checkpoint, Storage
from headrace.api.trainingjob.classic import (
    BoostingTrainer,
    ForestTrainer,
    LogisticRegressionTrainer,
    MatrixFactorizationTrainer,
)
from headrace.api.trainingjob.lifecycle import RestartPolicy, Scheduling
from headrace.api.trainingjob.outcome import Evaluation, Registry
from headrace.api.trainingjob.sources import Script
from headrace.api.trainingjob.topology import GPU, ResourceClaim, Topology
from headrace.api.trainingjob.trainers import ClassifierTrainer

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
    "POD_UID",
    "POD_IP",
    "HEADRACE_AGENT",
    "HEADRACE_BEATS",
    "HEADRACE_REPORTS",
    "HEADRACE_JOB",
    "HEADRACE_RUN_ID",
    "HEADRACE_ATTEMPT",
    "HEADRACE_CLASSIFIER",
    "HEADRACE_TRAINER",
    "HEADRACE_STORAGE_URI",
    "HEADRACE_TOPOLOGY",
    "HEADRACE_ROLE",
    "HEADRACE_SERVERS",
    "HEADRACE_SERVER_INDEX",
    "HEADRACE_WORKERS",
    "HEADRACE_ZONE",
    "HEADRACE_NODE",
    "HEADRACE_CHECKPOINT_INTERVAL",
    "HEADRACE_CHECKPOINT_KEEP",
    "HEADRACE_CHECKPOINT",
    "HEADRACE_EVALUATION",
    "HEADRACE_REGISTRY",
    "HEADRACE_METRICS_PORT",
    "HEADRACE_IMAGE",
    "PET_NNODES",
    "PET_NODE_RANK",
    "PET_NPROC_PER_NODE",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
)
"""Environment of a worker that the job itself sets."""

LAUNCHER_ENV = {
    "XGBoost": ("DMLC_ROLE", "DMLC_TRACKER_URI", "DMLC_TRACKER_PORT", "DMLC_NUM_WORKER", "DMLC_TASK_ID"),
    "TensorFlow": ("TF_CONFIG",),
    "MPI": ("HEADRACE_MPI", "HEADRACE_MPI_AGENT"),
}
"""What the job sets besides for each launcher."""

CLASSIC = ("boosting", "forest", "matrixFactorization", "logisticRegression")
"""Built-in trainers that run on CPUs and spread their work in their own ways."""
_ANY_CLASSIC = " || ".join(f"has(self.{name})" for name in CLASSIC)
_ANYTHING_TO_RUN = ", ".join(f"has(self.{name})" for name in ("classifier", *CLASSIC, "script", "command"))


def _fixed(*fields: str, optional: tuple[str, ...]) -> tuple[Rule, ...]:
    """Transition rules: these fields stay as they were, for the workers that run were made from them.

    That an optional field came or went shows in the number of fields, which is cheap to know; whether one was
    exchanged for another is looked at only where that is the same. (`dyn`: to CEL's types an object has no size.)

    Args:
        fields: Fields that are always there, for they have a default.
        optional: Fields that may not come or go either.
    """
    message = (
        "{} cannot change once the job exists, its workers are made from it: "
        "create a TrainingJob with another name, or delete this one first"
    )
    same_number = "dyn(self).size() == dyn(oldSelf).size()"
    names = ", ".join(f"'{field}'" for field in optional)
    return (
        *(Rule("self == oldSelf", message.format(field), of=field) for field in (*fields, *optional)),
        *(
            Rule(f"{same_number} || has(self.{field}) == has(oldSelf.{field})", message.format(field), f".{field}")
            for field in optional
        ),
        Rule(
            f"!({same_number}) || dyn(self).all(k, k in dyn(oldSelf)) || "
            f"(dyn(self).all(k, k in dyn(oldSelf) || !(k in [{names}])) && "
            f"dyn(oldSelf).all(k, k in dyn(self) || !(k in [{names}])))",
            message.format("what the workers are made from"),
        ),
    )


def _launcher_sets(launcher: str, names: tuple[str, ...]) -> Rule:
    """Rule: env leaves the launcher's variables alone."""
    return Rule(
        f"self.launcher != '{launcher}' || !has(self.env) || "
        f"self.env.all(e, !(e.name in [{', '.join(repr(name) for name in names)}]))",
        f"launcher {launcher} sets {', '.join(names)}: remove {'it' if len(names) == 1 else 'them'} from env",
        ".env",
        lambda spec: spec.launcher != launcher or not {variable.name for variable in spec.env} & set(names),
    )


Argument = Annotated[str, Field(max_length=131_072)]
"""One word of a command line, at most what Linux takes (MAX_ARG_STRLEN)."""


@rules(
    *once(
        Rule(
            f"[{_ANYTHING_TO_RUN}].filter(x, x).size() == 1",
            "set exactly one of classifier, boosting, forest, matrixFactorization and logisticRegression (built-in "
            "trainers), script and command",
            check=lambda spec: (
                sum(what is not None for what in (spec.classifier, *spec.classic, spec.script, spec.command)) == 1
            ),
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
            f"!(has(self.classifier) || {_ANY_CLASSIC}) || !has(self.args) || self.args.size() == 0",
            "the built-in trainer takes no arguments: set the trainer's fields, or move args to a script",
            ".args",
            lambda spec: (spec.classifier is None and not any(spec.classic)) or not spec.args,
        ),
        Rule(
            f"!({_ANY_CLASSIC}) || !has(self.gpu)",
            f"{', '.join(CLASSIC)} run on CPUs: remove gpu and set resources.requests.cpu",
            ".gpu",
            lambda spec: not any(spec.classic) or spec.gpu is None,
        ),
        Rule(
            f"!({_ANY_CLASSIC}) || !has(self.topology) || self.topology.type == 'AllReduce'",
            f"{', '.join(CLASSIC)} spread their work in their own ways: leave topology.type out",
            ".topology",
            lambda spec: not any(spec.classic) or spec.topology.type == "AllReduce",
        ),
        Rule(
            f"self.launcher == 'Torchrun' || !(has(self.classifier) || {_ANY_CLASSIC})",
            "launcher is for a script or a command of your own: remove it",
            ".launcher",
            lambda spec: spec.launcher == "Torchrun" or (spec.classifier is None and not any(spec.classic)),
        ),
        Rule(
            "self.launcher != 'MPI' || has(self.command)",
            "launcher MPI runs a command of your own, such as mpirun, on worker 0: set command and image",
            ".launcher",
            lambda spec: spec.launcher != "MPI" or spec.command is not None,
        ),
        Rule(
            "!has(self.gpu) || !has(self.gpu.resourceClaim) || (has(self.resourceClaims) && "
            "self.resourceClaims.exists(c, c.name == self.gpu.resourceClaim))",
            "gpu.resourceClaim names the entry of resourceClaims that the GPUs come from: add it there, or correct the "
            "name",
            ".gpu",
            lambda spec: (
                spec.gpu is None
                or spec.gpu.resource_claim is None
                or spec.gpu.resource_claim in {claim.name for claim in spec.resource_claims}
            ),
        ),
        *(_launcher_sets(launcher, names) for launcher, names in LAUNCHER_ENV.items()),
        Rule(
            "!has(self.classifier) || !has(self.topology) || !has(self.topology.pipeline) || "
            "(has(self.classifier.hiddenSizes) ? self.classifier.hiddenSizes.size() : 1) + 1 >= "
            "self.topology.pipeline.stages * (self.topology.pipeline.schedule == 'Interleaved1F1B' ? 2 : 1)",
            "the classifier has fewer layers than topology.pipeline has stages (Interleaved1F1B: two per process): "
            "add sizes to classifier.hiddenSizes (n sizes make n+1 layers), or choose fewer stages",
            ".classifier",
            lambda spec: (
                spec.classifier is None
                or spec.topology.pipeline is None
                or len(spec.classifier.hidden_sizes) + 1
                >= spec.topology.pipeline.stages * (2 if spec.topology.pipeline.schedule == "Interleaved1F1B" else 1)
            ),
        ),
        Rule(
            "!has(self.classifier) || !has(self.topology) || self.topology.tensorParallel == 1 || "
            "!has(self.classifier.hiddenSizes) || "
            "self.classifier.hiddenSizes.all(n, n % self.topology.tensorParallel == 0)",
            "topology.tensorParallel processes share each layer of the classifier evenly: make every size in "
            "classifier.hiddenSizes a multiple of it",
            ".classifier",
            lambda spec: (
                spec.classifier is None
                or all(size % spec.topology.tensor_parallel == 0 for size in spec.classifier.hidden_sizes)
            ),
        ),
        Rule(
            "!has(self.minWorkers) || !has(self.topology) || self.topology.tensorParallel == 1",
            "processes that share layers (topology.tensorParallel) do not come and go one by one: remove minWorkers "
            "and maxWorkers, or set tensorParallel to 1",
            ".minWorkers",
            lambda spec: spec.min_workers is None or spec.topology.tensor_parallel == 1,
        ),
        Rule(
            "!has(self.topology) || !has(self.topology.preflight) || "
            "(!has(self.image) && self.topology.type != 'ParameterServer')",
            "links are measured by the agents of the platform's trainer image, along the ring of workers: remove "
            "topology.preflight, or image and topology ParameterServer",
            ".topology",
            lambda spec: (
                spec.topology.preflight is None or (spec.image is None and spec.topology.type != "ParameterServer")
            ),
        ),
        Rule(
            "!has(self.topology) || self.topology.type != 'ParameterServer' || !has(self.gpu) || self.gpu.count == 1",
            "workers of topology ParameterServer are one process each, with one GPU at most: set gpu.count to 1 and "
            "raise numWorkers",
            ".gpu",
            lambda spec: spec.topology.type != "ParameterServer" or spec.gpu is None or spec.gpu.count == 1,
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
        Rule(
            "has(self.minWorkers) == has(self.maxWorkers)",
            "an elastic job has two bounds: set both minWorkers and maxWorkers, or neither",
            ".minWorkers",
            lambda spec: (spec.min_workers is None) == (spec.max_workers is None),
        ),
        Rule(
            f"!has(self.minWorkers) || !(has(self.image) || {_ANY_CLASSIC} || self.launcher != 'Torchrun' || "
            "(has(self.topology) && self.topology.type != 'AllReduce'))",
            "a job is elastic where any number of workers can go on from its checkpoints: classifier or script, in the "
            "platform's image, under topology AllReduce. Remove minWorkers and maxWorkers, or what is in their way",
            ".minWorkers",
            lambda spec: (
                spec.min_workers is None
                or not (
                    spec.image is not None
                    or any(spec.classic)
                    or spec.launcher != "Torchrun"
                    or spec.topology.type != "AllReduce"
                )
            ),
        ),
    ),
    *once(
        Rule(
            "self.launcher != 'TensorFlow' || self.numWorkers <= 256",
            "TF_CONFIG lists every worker and has to fit into one environment variable: at most 256 workers",
            ".numWorkers",
            lambda spec: spec.launcher != "TensorFlow" or spec.num_workers <= 256,
        ),
        Rule(
            "!has(self.classifier) || "
            "self.classifier.batchSize >= self.numWorkers * (has(self.gpu) ? self.gpu.count : 1)",
            "classifier.batchSize is shared by all processes, and each needs a row: "
            "raise it to numWorkers (times gpu.count), or ask for fewer workers",
            ".classifier",
            lambda spec: spec.classifier is None or spec.classifier.batch_size >= spec.processes,
        ),
        Rule(
            "!has(self.topology) || !has(self.topology.pipeline) || "
            "self.numWorkers * (has(self.gpu) ? self.gpu.count : 1) % self.topology.pipeline.stages == 0",
            "each pipe has one process per stage: make numWorkers (times gpu.count) a multiple of "
            "topology.pipeline.stages",
            ".topology",
            lambda spec: spec.topology.pipeline is None or spec.processes % spec.topology.pipeline.stages == 0,
        ),
        Rule(
            "!has(self.topology) || "
            "self.numWorkers * (has(self.gpu) ? self.gpu.count : 1) % self.topology.tensorParallel == 0",
            "each layer is shared by topology.tensorParallel processes: make numWorkers (times gpu.count) a multiple "
            "of it",
            ".topology",
            lambda spec: spec.processes % spec.topology.tensor_parallel == 0,
        ),
        Rule(
            "!has(self.topology) || !has(self.topology.parameterServer) || "
            "self.topology.parameterServer.backupWorkers < self.numWorkers",
            "topology.parameterServer.backupWorkers must be fewer than numWorkers, a round needs somebody's gradient: "
            "lower it, or ask for more workers",
            ".topology",
            lambda spec: (
                spec.topology.parameter_server is None
                or spec.topology.parameter_server.backup_workers < spec.num_workers
            ),
        ),
        Rule(
            "!has(self.minWorkers) || !has(self.maxWorkers) || "
            "(self.minWorkers <= self.numWorkers && self.numWorkers <= self.maxWorkers)",
            "numWorkers lies between minWorkers and maxWorkers, and minWorkers is not the greater of the two: correct "
            "them",
            ".numWorkers",
            lambda spec: (
                spec.min_workers is None
                or spec.max_workers is None
                or spec.min_workers <= spec.num_workers <= spec.max_workers
            ),
        ),
        unless="has(self.maxWorkers)",  # an elastic job
    ),
    Rule(
        "(has(self.minWorkers) && has(self.maxWorkers)) || self.numWorkers == oldSelf.numWorkers",
        "numWorkers cannot change once the job exists, unless minWorkers and maxWorkers are set: "
        "create a TrainingJob with another name, or delete this one first",
        ".numWorkers",
    ),
    *_fixed(
        "launcher",
        "topology",
        "checkpoint",
        optional=(
            "minWorkers",
            "maxWorkers",
            "image",
            "classifier",
            *CLASSIC,
            "script",
            "command",
            "args",
            "gpu",
            "resourceClaims",
            "storage",
            "evaluation",
            "registry",
            "resources",
            "env",
            "nodeSelector",
            "tolerations",
            "affinity",
            "imagePullSecrets",
            "priorityClassName",
            "serviceAccountName",
        ),
    ),
)
class TrainingJobSpec(PodOptions):
    """What to train, on how many workers, and where its results go."""

    num_workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Worker pods. With minWorkers and maxWorkers it may change while the job runs (`kubectl scale`)."""
    min_workers: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Fewest workers to train with: when workers are lost, the others go on, and take the replacements in when they
    come. Unset: all or nobody."""
    max_workers: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Most workers that numWorkers may ask for; goes with minWorkers."""
    image: ImageName | None = None
    """Container image; by default the trainer image of this release, with PyTorch."""
    classifier: ClassifierTrainer | None = None
    """Built-in trainer for classification."""
    boosting: BoostingTrainer | None = None
    """Built-in trainer of gradient boosted trees."""
    forest: ForestTrainer | None = None
    """Built-in trainer of a random forest."""
    matrix_factorization: MatrixFactorizationTrainer | None = None
    """Built-in trainer of recommendations, by alternating least squares."""
    logistic_regression: LogisticRegressionTrainer | None = None
    """Built-in trainer of logistic regression."""
    script: Script | None = None
    """Your own PyTorch script."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=256, json_schema_extra=LIST_ATOMIC)] | None = None
    """Your own entry point, run as it is under torchrun's environment."""
    args: Annotated[list[Argument], Field(max_length=1024, json_schema_extra=LIST_ATOMIC)] = Field(default_factory=list)
    """Arguments of the script or command."""
    launcher: Literal["Torchrun", "XGBoost", "TensorFlow", "MPI"] = "Torchrun"
    """Whose environment a script or command finds besides torchrun's: XGBoost: DMLC_*, with the tracker's address on
    rank 0. TensorFlow: TF_CONFIG. MPI: the command runs on worker 0 alone, with a hostfile and a stand-in for ssh."""
    gpu: GPU | None = None
    """GPUs of each worker; without it training runs on CPU with gloo."""
    resource_claims: Annotated[list[ResourceClaim], Field(max_length=16, json_schema_extra=list_map("name"))] = Field(
        default_factory=list
    )
    """Devices of each worker by dynamic resource allocation, as in a pod."""
    topology: Topology = Field(default_factory=Topology)
    """How the workers exchange gradients and where they sit."""
    storage: Storage | None = None
    """Where checkpoints and the model go; by default s3://headrace/<namespace>/<name> in the embedded store."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    """When the state of a run is saved."""
    evaluation: Evaluation | None = None
    """What the trained model must be worth; a run that misses it fails and publishes nothing."""
    registry: Registry | None = None
    """Where the run is logged and its model registered; by default nowhere."""
    restart_policy: RestartPolicy = Field(default_factory=RestartPolicy)
    """How often a failed run is started again; may change while the job runs."""
    suspend: bool = False
    """Stop the run and free what it holds: the workers save a checkpoint and leave, and go on from it when this is
    false again. May change at any time."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """Seconds after its end in which a finished job is deleted, with its pods and their logs; the model and the
    checkpoints stay in storage. 0: at once. Unset: never. May change at any time."""
    scheduling: Scheduling = Field(default_factory=Scheduling)
    """How long a group of workers may be started in part; may change while the job runs."""

    @property
    def most_workers(self) -> int:
        """Workers that the job may come to have."""
        return self.max_workers or self.num_workers

    @property
    def processes(self) -> int:
        """Processes of the whole group: one per worker, or one per GPU."""
        return self.num_workers * (self.gpu.count if self.gpu else 1)

    @property
    def classic(self) -> tuple[Model | None, ...]:
        """The built-in trainers that run on CPUs, in the order of CLASSIC; at most one is set."""
        return (self.boosting, self.forest, self.matrix_factorization, self.logistic_regression)
