"""The child objects of a TrainingJob: a function per object, from the resource to the manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime

from controllers.runtime import pods
from controllers.runtime.git import REPOSITORY, WORKSPACE, clone
from controllers.runtime.objects import Manifest
from controllers.runtime.settings import Settings
from controllers.trainingjob import accelerators, mpi
from controllers.trainingjob.names import (
    ATTEMPT,
    FIRST_ROUND,
    MASTER_PORT,
    METRICS_PORT,
    RANK,
    RECENT,
    RESTARTS,
    WORKER,
    processes_per_worker,
    runs_agents,
    service_name,
    worker_labels,
    worker_name,
)
from headrace.api.meta import parse_duration, parse_quantity
from headrace.api.schema import Model
from headrace.api.trainingjob import Registry, TrainingJob
from headrace.api.trainingjob.spec import CLASSIC

ZONE = "topology.kubernetes.io/zone"
GPU_PRODUCT = "nvidia.com/gpu.product"
LAUNCHER_PORT = MASTER_PORT + 1
"""Where the tracker of XGBoost and the servers of TensorFlow listen."""
SCRIPT_FOLDER = "/etc/headrace/script"


def service(job: TrainingJob) -> Manifest:
    """Headless Service that gives every worker a host name, also before it is ready: rendezvous comes first."""
    labels = worker_labels(job)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(job.metadata.name),
            "namespace": job.metadata.namespace,
            "labels": labels,
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": [{"name": "rendezvous", "port": MASTER_PORT, "protocol": "TCP"}],
        },
    }


def worker(
    job: TrainingJob,
    settings: Settings,
    index: int,
    *,
    attempt: int,
    restarts: int,
    zones: bool,
    first_round: int | None = None,
    recent: Sequence[datetime] = (),
) -> Manifest:
    """The pod of one worker.

    Args:
        job: The resource.
        settings: Images and defaults.
        index: Number of the worker, from 0.
        attempt: Which start of the group it belongs to, from 1.
        restarts: Counted restarts so far.
        zones: The cluster's nodes carry zone labels.
        first_round: The first attempt that it may take part in; later than `attempt` for a replacement.
        recent: When the counted restarts within the window were.
    """
    spec = job.spec
    first_round = first_round or attempt
    seconds = [int(at.timestamp()) for at in recent]
    volumes: list[Manifest] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    # The container default of 64 MiB is too small for NCCL and for data loader processes.
    mounts: list[Manifest] = [{"name": "shm", "mountPath": "/dev/shm"}]
    init: list[Manifest] = []
    container: Manifest = {
        "name": WORKER,
        "image": spec.image or settings.trainer_image,
        "command": command(job),
        "env": pods.merged_env(
            [
                *environment(job, settings, index, attempt),
                *agent_environment(job, settings, index, first_round, restarts, seconds),
            ],
            spec.env,
        ),
        "envFrom": pods.storage_env_from(spec.storage.secret_ref if spec.storage else None),
        "volumeMounts": mounts,
        "ports": [
            {"name": "rendezvous", "containerPort": MASTER_PORT, "protocol": "TCP"},
            *({"name": name, "containerPort": port, "protocol": "TCP"} for name, port in metrics_ports(job)),
        ],
    }
    if spec.args:
        container["args"] = list(spec.args)
    if spec.image is None:
        container["imagePullPolicy"] = settings.image_pull_policy
    resources: Manifest = dict(pods.resources(spec, accelerators.limits(spec)))
    if spec.resource_claims:
        resources["claims"] = [{"name": claim.name} for claim in spec.resource_claims]
    if resources:
        container["resources"] = resources
    if spec.script and spec.script.config_map:
        reference = spec.script.config_map
        items = [{"key": reference.key, "path": reference.key}]
        volumes.append({"name": "script", "configMap": {"name": reference.name, "items": items}})
        mounts.append({"name": "script", "mountPath": SCRIPT_FOLDER, "readOnly": True})
    if spec.script and spec.script.git:
        workspace = {"name": "workspace", "mountPath": WORKSPACE}
        volumes.append({"name": "workspace", "emptyDir": {}})
        mounts.append(workspace)
        init.append(clone(spec.script.git, settings, workspace))
        container["workingDir"] = REPOSITORY

    extra: Manifest = {"restartPolicy": "Never", "hostname": worker_name(job.metadata.name, index)}
    if spec.resource_claims:
        extra["resourceClaims"] = [claim.manifest() for claim in spec.resource_claims]
    if spec.most_workers > 1:
        extra["subdomain"] = service_name(job.metadata.name)
        if spec.topology.zone_spread == "Spread" and zones:
            extra["topologySpreadConstraints"] = [zone_spread(job, attempt)]
    made: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": worker_name(job.metadata.name, index),
            "namespace": job.metadata.namespace,
            "labels": {
                **worker_labels(job),
                ATTEMPT: str(attempt),
                RANK: str(index * processes_per_worker(job)),
            },
            "annotations": {
                RESTARTS: str(restarts),
                **({FIRST_ROUND: str(first_round)} if first_round > attempt else {}),
                **({RECENT: ",".join(map(str, seconds))} if seconds else {}),
            },
        },
        "spec": pods.pod_spec(
            spec,
            containers=[container],
            init_containers=init,
            volumes=volumes,
            affinity=together(job),
            node_selector={GPU_PRODUCT: spec.gpu.product} if spec.gpu and spec.gpu.product else None,
            # Nodes with GPUs are kept for those who ask for them by a taint of the resource's name.
            tolerations=(
                [{"key": spec.gpu.resource_name, "operator": "Exists", "effect": "NoSchedule"}] if spec.gpu else []
            ),
            extra=extra,
        ),
    }
    if sits := accelerators.with_memory(spec, made["spec"].get("affinity") or {}):
        made["spec"]["affinity"] = sits
    return made


def zone_spread(job: TrainingJob, attempt: int) -> Manifest:
    """Workers of one attempt balanced over zones.

    A hard constraint, since a soft one is outvoted by image locality and free resources, and a job that asked for
    zones must not find out in an outage that it never had them. Only zones with a node that the pod may run on count
    (taints honoured), so one zone, or a zone that is down, blocks nothing.
    """
    return {
        "maxSkew": 1,
        "topologyKey": ZONE,
        "whenUnsatisfiable": "DoNotSchedule",
        "nodeAffinityPolicy": "Honor",
        "nodeTaintsPolicy": "Honor",
        "labelSelector": {"matchLabels": {**worker_labels(job), ATTEMPT: str(attempt)}},
    }


def metrics_ports(job: TrainingJob) -> list[tuple[str, int]]:
    """Name and number of the port at which each process of a worker serves its metrics."""
    ports = range(METRICS_PORT, METRICS_PORT + processes_per_worker(job))
    return [("metrics" if port == METRICS_PORT else f"metrics-{port - METRICS_PORT}", port) for port in ports]


def pack_affinity(job: TrainingJob) -> Manifest:
    """Workers in the zone of the first one, where they fit."""
    term = {"topologyKey": ZONE, "labelSelector": {"matchLabels": worker_labels(job)}}
    return {
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    }


def together(job: TrainingJob) -> Manifest | None:
    """Workers in one zone, in one NVLink domain."""
    if job.spec.num_workers == 1:
        return None
    pack = pack_affinity(job) if job.spec.topology.zone_spread == "Pack" else {}
    return pods.merged_affinity(pack, accelerators.nvlink(job.spec, worker_labels(job))) or None


def command(job: TrainingJob) -> list[str]:
    """What a worker runs: an agent that starts the training processes. In an image of somebody else, several processes
    per worker start through torchrun, which reads the PET_ variables.
    """
    spec = job.spec
    if spec.launcher == "MPI":
        return mpi.command(job)
    if spec.command:
        return list(spec.command)
    several = processes_per_worker(job) > 1
    python = ["python", "-m", "torch.distributed.run"] if several else ["python"]
    if runs_agents(job):
        python = ["python", "-m", "headrace.training.agent", "--", "python"]
    if spec.script is None:
        return [*python, "-m", "headrace.training", built_in_trainer(job)[0]]
    if spec.script.config_map:
        return [*python, f"{SCRIPT_FOLDER}/{spec.script.config_map.key}"]
    if spec.script.git:
        return [*python, f"{REPOSITORY}/{spec.script.git.path}"]
    return [*python, spec.script.path or ""]


def environment(job: TrainingJob, settings: Settings, index: int, attempt: int) -> list[Manifest]:
    """What the job tells its workers, and torchrun's environment where no agent gives it to the training processes.

    The API server keeps track of each variable of each pod (managedFields), so none is here that nobody reads.
    """
    spec = job.spec
    env = [
        *pods.identity_env(),
        pods.variable("HEADRACE_JOB", job.metadata.name),
        pods.variable("HEADRACE_RUN_ID", job.metadata.uid),
        pods.variable("HEADRACE_ATTEMPT", attempt),
        pods.variable("HEADRACE_STORAGE_URI", storage_uri(job, settings)),
        pods.variable("HEADRACE_CHECKPOINT_INTERVAL", spec.checkpoint.interval),
        pods.variable("HEADRACE_CHECKPOINT_KEEP", spec.checkpoint.keep),
        pods.variable("HEADRACE_CHECKPOINT", _json(spec.checkpoint)),
        pods.variable("HEADRACE_METRICS_PORT", METRICS_PORT),
        pods.variable("HEADRACE_IMAGE", spec.image or settings.trainer_image),
        pods.variable("HEADRACE_TOPOLOGY", _json(spec.topology)),
        # The node's zone: the API server copies it to the pod's labels when the pod is bound (Kubernetes 1.35).
        {"name": "HEADRACE_ZONE", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{ZONE}']"}}},
        {"name": "HEADRACE_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        pods.variable("OMP_NUM_THREADS", threads(job)),
        *accelerators.environment(spec),
    ]
    if not runs_agents(job):
        env += torchrun_environment(job, settings, index)
    if spec.evaluation:
        env.append(pods.variable("HEADRACE_EVALUATION", _json(spec.evaluation)))
    if spec.registry:
        env.append(pods.variable("HEADRACE_REGISTRY", _json(spec.registry)))
        env += registry_credentials(spec.registry)
    if spec.classifier:
        env.append(pods.variable("HEADRACE_CLASSIFIER", _json(spec.classifier)))
    elif trainer := built_in_trainer(job)[1]:
        env.append(pods.variable("HEADRACE_TRAINER", _json(trainer)))
    return env + launcher_environment(job, settings, index)


def torchrun_environment(job: TrainingJob, settings: Settings, index: int) -> list[Manifest]:
    """What torchrun's processes have; several of a worker get their ranks from torchrun, which reads the PET_ ones."""
    workers, processes = job.spec.num_workers, processes_per_worker(job)
    master = master_address(job, settings)
    env = [
        pods.variable("MASTER_ADDR", master),
        pods.variable("MASTER_PORT", MASTER_PORT),
        pods.variable("PET_NNODES", workers),
        pods.variable("PET_NODE_RANK", index),
        pods.variable("PET_NPROC_PER_NODE", processes),
        pods.variable("PET_MASTER_ADDR", master),
        pods.variable("PET_MASTER_PORT", MASTER_PORT),
    ]
    if processes == 1:
        env += [
            pods.variable("WORLD_SIZE", workers),
            pods.variable("RANK", index),
            pods.variable("LOCAL_RANK", 0),
            pods.variable("LOCAL_WORLD_SIZE", 1),
            pods.variable("GROUP_RANK", index),
        ]
    return env


def agent_environment(
    job: TrainingJob, settings: Settings, index: int, first_round: int, restarts: int, recent: Sequence[int]
) -> list[Manifest]:
    """What a worker's agent is told; see `headrace.training.agent.settings`."""
    if not runs_agents(job):
        return []
    policy, workers = job.spec.restart_policy, job.spec.num_workers
    told = {
        "index": index,
        "workers": workers,
        "minWorkers": job.spec.min_workers or workers,
        "maxWorkers": job.spec.most_workers,
        "processes": processes_per_worker(job),
        "coordinator": master_address(job, settings),
        "attempt": first_round,
        "restarts": restarts,
        "recent": list(recent),
        "maxRestarts": policy.max_restarts,
        "window": parse_duration(policy.window).total_seconds(),
        "hangTimeout": parse_duration(policy.hang_timeout).total_seconds() if policy.hang_timeout else 0,
    }
    if (preflight := job.spec.topology.preflight) is not None:
        told["preflight"] = {
            "minBandwidth": parse_quantity(preflight.min_bandwidth or 0),
            "maxRoundTrip": parse_duration(preflight.max_round_trip or "0s").total_seconds(),
            "fail": preflight.on_slow == "Fail",
            "timeout": parse_duration(preflight.timeout).total_seconds(),
        }
    return [
        pods.variable("HEADRACE_AGENT", json.dumps(told, separators=(",", ":"))),
        {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]


def built_in_trainer(job: TrainingJob) -> tuple[str, Model | None]:
    """The field of the spec that describes the built-in trainer, and its value, which is None where a script runs."""
    for name, trainer in zip(CLASSIC, job.spec.classic, strict=True):
        if trainer is not None:
            return name, trainer
    return "classifier", job.spec.classifier


def launcher_environment(job: TrainingJob, settings: Settings, index: int) -> list[Manifest]:
    """What other frameworks' launchers would set: XGBoost's tracker on rank 0, TensorFlow's cluster, MPI's hosts."""
    workers = job.spec.num_workers
    if job.spec.launcher == "XGBoost":
        return [
            pods.variable("DMLC_ROLE", "worker"),
            pods.variable("DMLC_TRACKER_URI", master_address(job, settings)),
            pods.variable("DMLC_TRACKER_PORT", LAUNCHER_PORT),
            pods.variable("DMLC_NUM_WORKER", workers),
            pods.variable("DMLC_TASK_ID", index),
        ]
    if job.spec.launcher == "MPI":
        host = worker_address(job, settings, 0).replace(
            worker_name(job.metadata.name, 0), f"{job.metadata.name}-worker-*"
        )
        return mpi.environment(job, index, processes_per_worker(job), "127.0.0.1" if workers == 1 else host)
    if job.spec.launcher == "TensorFlow":
        addresses = [master_address(job, settings), *(worker_address(job, settings, n) for n in range(1, workers))]
        hosts = [f"{address}:{LAUNCHER_PORT}" for address in addresses]
        cluster = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        return [pods.variable("TF_CONFIG", json.dumps(cluster, separators=(",", ":")))]
    return []


def registry_credentials(registry: Registry) -> list[Manifest]:
    """What the registry's Secret has of MLflow's variables; it may lack some of them."""
    if registry.secret_ref is None:
        return []
    name = registry.secret_ref.name
    return [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key, "optional": True}}}
        for key in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    ]


def _json(model: Model) -> str:
    return json.dumps(model.manifest(), separators=(",", ":"), sort_keys=True)


def threads(job: TrainingJob) -> int:
    """OpenMP threads of a process: the CPUs that it may count on, since more would spin against each other."""
    cpu = job.spec.resources.limits.get("cpu", job.spec.resources.requests.get("cpu", 1))
    return max(1, math.floor(parse_quantity(cpu) / processes_per_worker(job)))


def master_address(job: TrainingJob, settings: Settings) -> str:
    """Where rank 0 waits for the others; a lone worker needs no name."""
    return "127.0.0.1" if job.spec.most_workers == 1 else worker_address(job, settings, 0)


def worker_address(job: TrainingJob, settings: Settings, index: int) -> str:
    """Host name of a worker's pod."""
    name, namespace = job.metadata.name, job.metadata.namespace
    return f"{worker_name(name, index)}.{service_name(name)}.{namespace}.svc.{settings.cluster_domain}"


def storage_uri(job: TrainingJob, settings: Settings) -> str:
    """Folder of this run."""
    if job.spec.storage:
        return job.spec.storage.uri
    return f"{settings.storage.uri.rstrip('/')}/{job.metadata.namespace}/{job.metadata.name}"
