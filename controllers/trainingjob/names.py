"""Names, labels and annotations of a TrainingJob's children."""

from __future__ import annotations

from controllers.runtime.objects import COMPONENT, INSTANCE, MANAGED_LABELS, ObjectType
from headrace.api.trainingjob import TrainingJob

JOB = ObjectType(TrainingJob.info.api_version, TrainingJob.info.kind, TrainingJob.info.plural, watched=False)
"""A TrainingJob as something to delete; kopf watches them, not a cache of the runtime."""
NAME = "app.kubernetes.io/name"
ATTEMPT = "headrace.dev/attempt"
RANK = "headrace.dev/rank"
RESTARTS = "headrace.dev/restarts"
"""Annotation of a worker: counted restarts when its attempt began, so that the count outlives a lagging status."""
FIRST_ROUND = "headrace.dev/first-round"
"""Annotation of a worker: the first attempt that it may take part in; later than ATTEMPT for a replacement."""
RECENT = "headrace.dev/recent-restarts"
"""Annotation of a worker: when the counted restarts within the window were, in seconds since 1970."""
WORKER = "worker"
MASTER_PORT = 29500
METRICS_PORT = 9400
"""Port of the first process of a worker; the others follow."""


def worker_name(job: str, index: int) -> str:
    """Name and host name of the pod of one worker."""
    return f"{job}-worker-{index}"


def service_name(job: str) -> str:
    """Name of the headless Service; not the job's own, which an InferenceService of the same name takes."""
    return f"{job}-workers"


def worker_labels(job: TrainingJob) -> dict[str, str]:
    """Labels by which all workers of a job are found, whatever their attempt."""
    return {
        **MANAGED_LABELS,
        NAME: "trainingjob",
        INSTANCE: job.metadata.name,
        COMPONENT: WORKER,
    }


def selector(job: TrainingJob) -> str:
    """Label selector of the workers, for `kubectl logs -l`."""
    return f"{NAME}=trainingjob,{INSTANCE}={job.metadata.name},{COMPONENT}={WORKER}"


def processes_per_worker(job: TrainingJob) -> int:
    """One process per GPU, or one."""
    return job.spec.gpu.count if job.spec.gpu else 1


def runs_agents(job: TrainingJob) -> bool:
    """Whether the workers run Headrace's agent, which starts training again within the pods.

    It does where the platform's trainer image runs. An image of somebody else may have no Headrace in it, or another
    release: its workers are replaced together, pods and all. Workers of a parameter server come and go on their own.
    """
    spec = job.spec
    return spec.command is None and spec.image is None and spec.topology.type != "ParameterServer"
