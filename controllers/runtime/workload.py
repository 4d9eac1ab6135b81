"""The one builder of Deployments: every server that the platform runs is spread, guarded, probed and hardened here.

A `Workload` says what differs between servers (image, arguments, replicas, who may connect); the functions below turn
it into a Deployment and the objects that stand around it. What every server gets, and why:

*Spread.* Constraints over zones and then over nodes, maxSkew 1, counted per revision (`matchLabelKeys`), so that the
pods of a new revision are balanced by themselves. They are `ScheduleAnyway`: `DoNotSchedule` would leave pods pending
on nodes without a zone label, and in a zone outage as soon as the zones that remain do not have the same room. A
server that is badly balanced answers; one that is pending does not. `nodeTaintsPolicy: Honor` keeps a dead zone (its
nodes are tainted) from being counted as the emptiest one.

*Lost nodes.* Pods leave a node that is not ready or unreachable after 30 s instead of the 300 s that Kubernetes adds by
default.

*Rolling updates without a failed request.* `maxUnavailable: 0`, `maxSurge: 1`: a pod goes only after its successor is
ready. A pod that is to go first sleeps (`preStop`), serving as ever, while its address leaves the endpoints and name
servers; told to end, the process still listens for `DRAIN` and asks its clients to close their connections, then
has the time of its longest request to finish.

*Voluntary disruption.* A PodDisruptionBudget of one, where there is more than one pod.

*Probes.* Startup with minutes of patience for loading, readiness within seconds, liveness slow to kill.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from controllers.runtime.objects import (
    COMPONENT,
    DEPLOYMENT,
    INSTANCE,
    MANAGED_LABELS,
    NETWORK_POLICY,
    OWNER_KIND,
    OWNER_UID,
    PDB,
    Manifest,
)
from controllers.runtime.plan import Apply
from controllers.runtime.pods import identity_env, merged_env, pod_spec, resources
from headrace.api.meta import PodOptions

TEMPLATE_HASH = "headrace.dev/template-hash"
"""Annotation of a pod template, and so of its pods: hash of all the rest of the template. It says of which revision a
pod is, and whether a Deployment has the template that its resource asks for: the API server adds defaults, so the
templates themselves cannot be compared."""
LOST_NODE_SECONDS = 30
"""Time that a pod stays on a node that is not ready or unreachable."""
PRE_STOP = timedelta(seconds=5)
"""Time that a leaving pod serves before its process is told; endpoints and DNS (TTL 5 s) change meanwhile."""
DRAIN = timedelta(seconds=5)
"""Time that a process which was told to end still listens."""
STARTUP = timedelta(minutes=10)
"""Time for a process to become ready before it is started again."""
PORT_NAME = "http"
HOSTNAME = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
DEFAULT_REQUESTS: Mapping[str, str] = {"cpu": "100m", "memory": "256Mi"}
"""Requests of a server whose owner set neither request nor limit of the resource: a CPU autoscaler computes shares of
the request, and a pod without requests is the first to be evicted."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Paths on the HTTP port.

    Attributes:
        startup: Answers 200 once the process is up; nothing else is probed before.
        readiness: Answers 200 while requests may be sent here.
        liveness: Answers 200 unless the process must be started again.
    """

    startup: str
    readiness: str
    liveness: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What differs between servers.

    Attributes:
        name: Name of the Deployment, its budget and its policy.
        namespace: Where they go.
        instance: Name of the resource that they belong to.
        owner_kind: Its kind.
        owner_uid: Its uid, by which the watch caches find the pods.
        component: Part of the resource, such as router.
        image: Container image.
        image_pull_policy: As in a container.
        args: Command line of the container.
        options: What people set.
        replicas: Pods asked for now.
        most_replicas: Pods at most, with an autoscaler.
        port: HTTP port of the container.
        more_ports: Its other ports by name.
        probes: Paths of the probes.
        longest_request: Time that the longest request may take; a leaving pod has it to finish.
        ingress: NetworkPolicy ingress rules; nothing else may connect.
        env: Variables of the container beside the pod's identity.
        env_from: Secrets and ConfigMaps whose keys are variables.
        volumes: Volumes of the pod.
        volume_mounts: Mounts of the container.
        init_containers: Run before it.
        arguments: What follows the command line; alone where that is the image's own.
        token: Mount the ServiceAccount's token, for a process that reports.
    """

    name: str
    namespace: str
    instance: str
    owner_kind: str
    owner_uid: str
    component: str
    image: str
    image_pull_policy: str
    args: Sequence[str]
    options: PodOptions
    replicas: int
    most_replicas: int
    port: int
    probes: Probes
    longest_request: timedelta
    ingress: Sequence[Mapping[str, Any]]
    env: Sequence[Manifest] = ()
    env_from: Sequence[Manifest] = ()
    volumes: Sequence[Manifest] = ()
    volume_mounts: Sequence[Manifest] = ()
    init_containers: Sequence[Manifest] = ()
    arguments: Sequence[str] = ()
    token: bool = False
    more_ports: Mapping[str, int] = field(default_factory=dict)

    @property
    def selector(self) -> dict[str, str]:
        """Labels that select the pods; never changed, since a Deployment's selector is immutable."""
        return {**MANAGED_LABELS, INSTANCE: self.instance, COMPONENT: self.component}


def server(workload: Workload) -> tuple[Apply, ...]:
    """All objects of a server in the order in which they are applied: its guards stand before its first pod runs."""
    guards = [Apply(NETWORK_POLICY, network_policy(workload))]
    if workload.most_replicas > 1:
        guards.append(Apply(PDB, disruption_budget(workload)))
    return (*guards, Apply(DEPLOYMENT, deployment(workload)))


def deployment(workload: Workload) -> Manifest:
    """The Deployment."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(workload),
        "spec": {
            "replicas": workload.replicas,
            "revisionHistoryLimit": 3,
            "minReadySeconds": 2,
            # Longer than the startup probe's patience, so that slow loading is not called a stalled rollout.
            "progressDeadlineSeconds": int(STARTUP.total_seconds()) + 60,
            "selector": {"matchLabels": workload.selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": pod_template(workload),
        },
    }


def pod_template(workload: Workload) -> Manifest:
    """The template of the pods; annotated with its own hash."""
    grace = PRE_STOP + DRAIN + workload.longest_request + timedelta(seconds=5)
    labels = {**workload.selector, OWNER_KIND: workload.owner_kind, OWNER_UID: workload.owner_uid}
    spec = pod_spec(
        workload.options,
        containers=[_container(workload)],
        init_containers=workload.init_containers,
        volumes=workload.volumes,
        tolerations=[
            _leave_after(LOST_NODE_SECONDS, taint)
            for taint in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
        ],
        token=workload.token,
        extra={
            "terminationGracePeriodSeconds": math.ceil(grace.total_seconds()),
            "topologySpreadConstraints": [_spread(key, workload.selector) for key in (ZONE, HOSTNAME)],
        },
    )
    annotations = {TEMPLATE_HASH: content_hash([labels, spec])}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}


def template_hash(manifest: Manifest) -> str:
    """The hash that a pod or a pod template carries; empty where it has none."""
    return (manifest.get("metadata", {}).get("annotations") or {}).get(TEMPLATE_HASH) or ""


def disruption_budget(workload: Workload) -> Manifest:
    """Evictions (node drains, autoscaled nodes) take one pod at a time. A pod that is not ready may always go."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(workload),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": workload.selector},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def network_policy(workload: Workload) -> Manifest:
    """Who may connect. Egress is left open: storage, name servers and the API server differ between clusters."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(workload),
        "spec": {
            "podSelector": {"matchLabels": workload.selector},
            "policyTypes": ["Ingress"],
            "ingress": [dict(rule) for rule in workload.ingress],
        },
    }


def metadata(workload: Workload) -> Manifest:
    """Name, namespace and labels of the workload's objects."""
    return {"name": workload.name, "namespace": workload.namespace, "labels": workload.selector}


def content_hash(value: object) -> str:
    """A short stable hash of JSON: 16 hexadecimal digits, fit for names and labels."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _container(workload: Workload) -> Manifest:
    container: Manifest = {
        "name": workload.component,
        "image": workload.image,
        "imagePullPolicy": workload.image_pull_policy,
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP"}
            for name, port in {PORT_NAME: workload.port, **workload.more_ports}.items()
        ],
        "env": merged_env([*identity_env(), *workload.env], workload.options.env),
        "resources": _resources(workload.options),
        "startupProbe": _probe(workload.probes.startup, period=2, timeout=2, failures=STARTUP // timedelta(seconds=2)),
        "readinessProbe": _probe(workload.probes.readiness, period=2, timeout=2, failures=2),
        # A busy node may starve a process for a while; killing it then makes matters worse.
        "livenessProbe": _probe(workload.probes.liveness, period=10, timeout=5, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": int(PRE_STOP.total_seconds())}}},
    }
    if workload.args:
        container["command"] = list(workload.args)
    if workload.arguments:
        container["args"] = list(workload.arguments)
    if workload.env_from:
        container["envFrom"] = list(workload.env_from)
    if workload.volume_mounts:
        container["volumeMounts"] = list(workload.volume_mounts)
    return container


def _resources(options: PodOptions) -> Manifest:
    asked = resources(options)
    limits = asked.get("limits", {})
    missing = {name: amount for name, amount in DEFAULT_REQUESTS.items() if name not in limits}
    return {**asked, "requests": {**missing, **asked.get("requests", {})}}


def _probe(path: str, *, period: int, timeout: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": PORT_NAME, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _spread(topology_key: str, selector: Mapping[str, str]) -> Manifest:
    return {
        "topologyKey": topology_key,
        "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
        "nodeTaintsPolicy": "Honor",
        "labelSelector": {"matchLabels": dict(selector)},
        "matchLabelKeys": ["pod-template-hash"],
    }


def _leave_after(seconds: int, taint: str) -> Manifest:
    return {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
