"""TrainingJob: a distributed training run that survives its pods."""

from headrace.api.trainingjob.checkpoint import Best, Checkpoint, Storage
from headrace.api.trainingjob.classic import (
    BoostingTrainer,
    ForestTrainer,
    LogisticRegressionTrainer,
    MatrixFactorizationTrainer,
)
from headrace.api.trainingjob.kind import TrainingJob
from headrace.api.trainingjob.lifecycle import RestartPolicy, Scheduling
from headrace.api.trainingjob.outcome import Evaluation, Registry
from headrace.api.trainingjob.parameter_server import Compression, ParameterServer
from headrace.api.trainingjob.sources import GitSource, Script
from headrace.api.trainingjob.spec import TrainingJobSpec
from headrace.api.trainingjob.status import (
    CheckpointStatus,
    Goodput,
    LastRestart,
    Progress,
    RegisteredModel,
    RequeueState,
    ServerCounts,
    StepTime,
    TrainingJobStatus,
    WorkerCounts,
    WorkerPlace,
)
from headrace.api.trainingjob.topology import GPU, RDMA, LocalSGD, Pipeline, Preflight, ResourceClaim, Topology
from headrace.api.trainingjob.trainers import ClassifierTrainer, Dataset

__all__ = [
    "GPU",
    "RDMA",
    "Best",
    "BoostingTrainer",
    "Checkpoint",
    "CheckpointStatus",
    "ClassifierTrainer",
    "Compression",
    "Dataset",
    "Evaluation",
    "ForestTrainer",
    "GitSource",
    "Goodput",
    "LastRestart",
    "LocalSGD",
    "LogisticRegressionTrainer",
    "MatrixFactorizationTrainer",
    "ParameterServer",
    "Pipeline",
    "Preflight",
    "Progress",
    "RegisteredModel",
    "Registry",
    "RequeueState",
    "ResourceClaim",
    "RestartPolicy",
    "Scheduling",
    "Script",
    "ServerCounts",
    "StepTime",
    "Storage",
    "Topology",
    "TrainingJob",
    "TrainingJobSpec",
    "TrainingJobStatus",
    "WorkerCounts",
    "WorkerPlace",
]
