"""The servers of topology ParameterServer: their pods, the Service that names them, and where workers find them."""

from __future__ import annotations

from collections.abc import Sequence

from controllers.runtime import pods
from controllers.runtime.objects import COMPONENT, Manifest
from controllers.runtime.settings import Settings
from controllers.trainingjob import builders
from controllers.trainingjob.names import ATTEMPT, MASTER_PORT, RESTARTS, WORKER, worker_labels
from headrace.api.meta import Resources
from headrace.api.trainingjob import ParameterServer, TrainingJob

SERVER = "server"
ROLE = "headrace.dev/role"
PORT = MASTER_PORT
_ONLY_WORKERS = (
    "HEADRACE_CLASSIFIER",
    "HEADRACE_TRAINER",
    "HEADRACE_EVALUATION",
    "HEADRACE_REGISTRY",
    "MASTER_ADDR",
    "MASTER_PORT",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
)


def spec_of(job: TrainingJob) -> ParameterServer:
    """The job's parameterServer; only for jobs of that topology."""
    found = job.spec.topology.parameter_server
    if found is None:
        raise ValueError(f"TrainingJob {job.metadata.name} has no parameter servers")
    return found


def server_name(job: str, index: int) -> str:
    """Name and host name of the pod of one server."""
    return f"{job}-server-{index}"


def servers_service_name(job: str) -> str:
    """Name of the headless Service of the servers."""
    return f"{job}-servers"


def server_labels(job: TrainingJob) -> dict[str, str]:
    """Labels by which all servers of a job are found."""
    return {**worker_labels(job), COMPONENT: SERVER}


def addresses(job: TrainingJob, settings: Settings) -> list[str]:
    """`host:port` of each server."""
    name, namespace = job.metadata.name, job.metadata.namespace
    domain = f"{servers_service_name(name)}.{namespace}.svc.{settings.cluster_domain}"
    return [f"{server_name(name, index)}.{domain}:{PORT}" for index in range(spec_of(job).servers)]


def service(job: TrainingJob) -> Manifest:
    """Headless Service that gives every server a host name, also before it is ready: workers try until it is."""
    labels = server_labels(job)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": servers_service_name(job.metadata.name),
            "namespace": job.metadata.namespace,
            "labels": labels,
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": [{"name": "parameters", "port": PORT, "protocol": "TCP"}],
        },
    }


def worker_environment(job: TrainingJob, settings: Settings) -> list[Manifest]:
    """What a worker is told besides what every worker is."""
    return [
        pods.variable("HEADRACE_ROLE", "worker"),
        pods.variable("HEADRACE_SERVERS", ",".join(addresses(job, settings))),
    ]


def worker(job: TrainingJob, settings: Settings, index: int, *, attempt: int, restarts: int, zones: bool) -> Manifest:
    """The pod of one worker, which knows the servers."""
    pod = builders.worker(job, settings, index, attempt=attempt, restarts=restarts, zones=zones)
    pod["metadata"]["labels"][ROLE] = "worker"
    pod["spec"]["containers"][0]["env"] += worker_environment(job, settings)
    return pod


def server(job: TrainingJob, settings: Settings, index: int, *, attempt: int, restarts: int, zones: bool) -> Manifest:
    """The pod of one server. It runs the platform's trainer image, whatever the workers run.

    Args:
        job: The resource.
        settings: Images and defaults.
        index: Number of the server, from 0.
        attempt: Which start of the whole job it belongs to, from 1.
        restarts: Counted restarts so far.
        zones: The cluster's nodes carry zone labels.
    """
    spec, served = job.spec, spec_of(job)
    told = [
        item
        for item in builders.environment(job, settings, index, attempt)
        if item["name"] not in _ONLY_WORKERS and not item["name"].startswith("PET_")
    ]
    told += [
        pods.variable("HEADRACE_ROLE", SERVER),
        pods.variable("HEADRACE_SERVERS", ",".join(addresses(job, settings))),
        pods.variable("HEADRACE_SERVER_INDEX", index),
        pods.variable("HEADRACE_WORKERS", spec.num_workers),
    ]
    container: Manifest = {
        "name": WORKER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "headrace.training.parameter_server"],
        "env": told,
        "envFrom": pods.storage_env_from(spec.storage.secret_ref if spec.storage else None),
        "ports": [{"name": "parameters", "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 2, "failureThreshold": 3},
    }
    resources = served.resources or _without_devices(spec.resources)
    if made := pods.resources(spec.model_copy(update={"resources": resources})):
        container["resources"] = made
    name = job.metadata.name
    extra: Manifest = {
        "restartPolicy": "Never",
        "hostname": server_name(name, index),
        "subdomain": servers_service_name(name),
        # It writes a last checkpoint.
        "terminationGracePeriodSeconds": 30,
    }
    if served.servers > 1 and spec.topology.zone_spread == "Spread" and zones:
        extra["topologySpreadConstraints"] = [zone_spread(job, attempt)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": server_name(name, index),
            "namespace": job.metadata.namespace,
            "labels": {**server_labels(job), ATTEMPT: str(attempt), ROLE: SERVER},
            "annotations": {RESTARTS: str(restarts)},
        },
        "spec": pods.pod_spec(spec, containers=[container], token=False, extra=extra),
    }


def zone_spread(job: TrainingJob, attempt: int) -> Manifest:
    """Servers balanced over zones; see `builders.zone_spread`."""
    labels = {**server_labels(job), ATTEMPT: str(attempt)}
    return {**builders.zone_spread(job, attempt), "labelSelector": {"matchLabels": labels}}


def _without_devices(resources: Resources) -> Resources:
    """A worker's resources without extended ones (GPUs), which no server uses."""

    def plain(names: Sequence[str]) -> set[str]:
        return {name for name in names if "/" not in name}

    return Resources(
        requests={name: resources.requests[name] for name in plain(list(resources.requests))},
        limits={name: resources.limits[name] for name in plain(list(resources.limits))},
    )
