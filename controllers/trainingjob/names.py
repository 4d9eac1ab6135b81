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
