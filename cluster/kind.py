"""The local cluster: one control plane and a worker in each of the zones a, b, c, by kind.

With Docker and a reachable image registry the nodes are kind's own image; otherwise they are `cluster.nodeimage`'s, and
the pod network and NetworkPolicy are set up by `cluster.network` and a manifest. All else knows only the kubeconfig.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml

from cluster import cache, host, hub, network, nodeimage, registry
from cluster.features import FEATURE_GATES, RUNTIME_CONFIG
from cluster.process import ClusterError, output, run_logged, side_by_side, succeeds
from cluster.tools import KUBERNETES_VERSION, tool

ZONES = ("a", "b", "c")
STOCK_IMAGE = f"kindest/node:{KUBERNETES_VERSION}"
MANIFESTS = Path(__file__).parent / "manifests"

NodeChoice = Literal["auto", "stock", "offline"]


@dataclass
class State:
    """What is known of a cluster that is complete."""

    nodes: Literal["stock", "offline"]
    image: str
    manifests: str = ""
    """Hash of the manifests that were applied last."""


@dataclass(frozen=True)
class Node:
    """A node's container."""

    name: str
    status: str
    """Docker's word: running, paused, exited, …"""


def name() -> str:
    """Name of the cluster: HEADRACE_CLUSTER, by default `headrace`."""
    return os.environ.get("HEADRACE_CLUSTER", "headrace")


def kubeconfig() -> Path:
    """Path of the administrator's kubeconfig; there is a file only while the cluster exists."""
    return folder() / "kubeconfig"


def registry_name() -> str:
    """Name of the container of the registry that the nodes ask first."""
    return f"{name()}-registry"


def kubectl(*arguments: str | Path, stdin: str | None = None) -> str:
    """Standard output of kubectl on the cluster."""
    return output([tool("kubectl"), "--kubeconfig", kubeconfig(), *arguments], stdin=stdin)


def nodes() -> list[Node]:
    """The cluster's nodes, whatever state they are in."""
    lines = host.docker(
        "ps",
        "--all",
        "--filter",
        f"label=io.x-k8s.kind.cluster={name()}",
        "--format",
        "{{.Names}} {{.State}}",
    ).splitlines()
    return sorted((Node(*line.split()) for line in lines), key=lambda node: node.name)


def workers() -> list[str]:
    """Names of the nodes that run workloads, which is all but the control plane; empty when there is no cluster."""
    return [node.name for node in nodes() if not node.name.endswith("-control-plane")] if host.answers() else []


def up(choice: NodeChoice = "auto", meanwhile: Sequence[Callable[[], object]] = ()) -> None:
    """Make the cluster, or bring an existing one back to health; a few seconds when there is nothing to do.

    What is `meanwhile` to be done needs Docker but no cluster; it runs in threads beside the work here. Raises
    ClusterError with what to do when something is missing.
    """
    with cache.lock(f"cluster-{name()}"):
        started = time.monotonic()
        cache.say(host.ensure_docker())
        host.raise_inotify_limits()
        state = _load()
        existing = nodes()
        if existing and state is None:
            cache.say("Removing what an interrupted creation left…")
            _delete()
        elif not existing:
            # Its nodes are gone without `down`, and with them the images that they had.
            shutil.rmtree(folder(), ignore_errors=True)
            state = None
        registry.ensure_network()
        with side_by_side(meanwhile):
            if state is None:
                state = _create(choice)
            else:
                cache.say(f"The cluster {name()} exists ({state.nodes} nodes).")
                _wake(existing)
            _settle(state)
        cache.say(f"The cluster is ready after {time.monotonic() - started:.0f} s.")


def down(*, everything: bool = False) -> None:
    """Delete the cluster; with `everything` also stop the Docker daemon that was started, and restore the host."""
    with cache.lock(f"cluster-{name()}"):
        if host.answers() and nodes():
            _delete()
            cache.say(f"Deleted the cluster {name()}.")
        shutil.rmtree(folder(), ignore_errors=True)
        if everything:
            for line in host.restore():
                cache.say(line)


def status() -> bool:
    """Print what runs and return whether the cluster is up."""
    if not host.answers():
        print("No Docker daemon answers, so there is no cluster. `headrace cluster up` makes one.")
        return False
    containers = nodes()
    state = _load()
    if not containers or state is None:
        print(f"There is no cluster {name()}. `headrace cluster up` makes one.")
        return False
    stopped = [node for node in containers if node.status != "running"]
    for node in stopped:
        print(f"{node.name} is {node.status}. `headrace cluster up` brings it back.")
    if not _api_answers():
        print("The API server does not answer. `headrace cluster up` repairs that, or says why not.")
        return False
    print(kubectl("get", "nodes", "-L", "topology.kubernetes.io/zone", "-o", "wide"))
    print(kubectl("get", "pods", "--all-namespaces", "-o", "wide"))
    print(f"nodes: {state.nodes} image {state.image}")
    print(f"export KUBECONFIG={kubeconfig()}")
    return not stopped and _nodes_ready()


def restore_node(container: str) -> None:
    """Start or unpause the container of a node that is stopped or paused."""
    _wake([node for node in nodes() if node.name == container])


def _create(choice: NodeChoice) -> State:
    kind, _ = tool("kind"), tool("kubectl")
    state = _choose(choice)
    volumes = folder() / "volumes"
    volumes.mkdir(parents=True, exist_ok=True)
    config = folder() / "kind.yaml"
    config.write_text(yaml.safe_dump(configuration(state, volumes), sort_keys=False))
    cache.say(f"Creating the cluster {name()}: control plane and zones {', '.join(ZONES)} (about half a minute)…")
    run_logged(
        [kind, "create", "cluster", "--name", name(), "--config", config, "--kubeconfig", kubeconfig()],
        _log(),
        env=environment(),
        hint="`headrace cluster down` and `up` begin anew.",
    )
    kubeconfig().chmod(0o600)
    if state.nodes == "offline":
        network.set_up([node.name for node in nodes()], kubectl)
    _save(state)
    return state


def _choose(choice: NodeChoice) -> State:
    if choice == "offline":
        cache.say("Nodes: the offline image, as asked.")
        return State("offline", nodeimage.node_image())
    if host.docker("image", "ls", "--quiet", STOCK_IMAGE).strip():
        cache.say(f"Nodes: kind's image {STOCK_IMAGE}, which this Docker has.")
        return State("stock", STOCK_IMAGE)
    registries = hub.registries()
    found = hub.reachable(registries)
    if choice == "auto" and found is None:
        reason = f"{hub.named(registries)} cannot be reached"
    else:
        cache.say(f"Nodes: kind's image {STOCK_IMAGE}, from {found or hub.named(registries)}…")
        try:
            host.docker("pull", "--quiet", STOCK_IMAGE)
            return State("stock", STOCK_IMAGE)
        except ClusterError as error:
            if choice == "stock":
                raise
            reason = str(error)
    cache.say(f"Nodes: the offline image, from Debian packages and Go modules, since {reason}.")
    return State("offline", nodeimage.node_image())


def configuration(state: State, volumes: Path) -> dict[str, object]:
    """The kind configuration."""
    mounts = [{"hostPath": str(volumes), "containerPath": "/headrace/volumes"}]
    workers = [
        {
            "role": "worker",
            "labels": {"topology.kubernetes.io/region": "local", "topology.kubernetes.io/zone": zone},
            "extraMounts": mounts,
        }
        for zone in ZONES
    ]
    # cgroup v1 hosts: the kubelet refuses them by default since 1.35.
    kubelet = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "failCgroupV1": False}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "featureGates": FEATURE_GATES,
        "runtimeConfig": RUNTIME_CONFIG,
        "networking": {"podSubnet": network.POD_SUBNET, "disableDefaultCNI": state.nodes == "offline"},
        "kubeadmConfigPatches": [yaml.safe_dump(kubelet)],
        "nodes": [
            {"role": "control-plane", "image": state.image, "extraMounts": mounts},
            *({**worker, "image": state.image} for worker in workers),
        ],
    }


def _settle(state: State) -> None:
    """Apply the manifests that changed, and wait until the nodes and what they carry are ready."""
    _wait_for("the API server", _api_answers)
    registry.ensure(registry_name())
    registry.configure(registry_name(), [node.name for node in nodes()])
    digest = cache.digest_files(MANIFESTS, [MANIFESTS])
    if digest != state.manifests:
        kubectl("apply", "-f", MANIFESTS / "metrics-server.yaml")
        if state.nodes == "offline":
            kubectl("apply", "-f", MANIFESTS / "storage.yaml", "-f", MANIFESTS / "kube-router.yaml")
        else:
            _share_volumes()
        # Like metrics-server and the provisioner: what all zones need does not go down with one of them.
        selector = {"spec": {"template": {"spec": {"nodeSelector": {"node-role.kubernetes.io/control-plane": ""}}}}}
        kubectl("patch", "deployment", "coredns", "-n", "kube-system", "--patch", json.dumps(selector))
        state.manifests = digest
        _save(state)
    # The API calls a node Ready for 40 s after it was stopped; its kubelet knows better.
    _wait_for("the kubelet of every node", _kubelets_answer)
    _wait_for("every node to be Ready", _nodes_ready)
    rollouts = ["kube-system deployment/coredns", "kube-system daemonset/kube-proxy"]
    rollouts += ["kube-system deployment/metrics-server", "local-path-storage deployment/local-path-provisioner"]
    if state.nodes == "offline":
        rollouts.append("kube-system daemonset/kube-router")
    for namespace, workload in (rollout.split() for rollout in rollouts):
        kubectl("rollout", "status", workload, "-n", namespace, "--timeout=180s")


def _share_volumes() -> None:
    """Let the provisioner that kind installed put volumes where ours does, so that a pod finds them on every node."""
    documents = yaml.safe_load_all((MANIFESTS / "storage.yaml").read_text())
    ours = next(document for document in documents if document["kind"] == "ConfigMap")
    patch = {"data": {"config.json": ours["data"]["config.json"]}}
    place = ["-n", ours["metadata"]["namespace"], ours["metadata"]["name"]]
    kubectl("patch", "configmap", *place, "--type=merge", "--patch", json.dumps(patch))


def _wake(containers: list[Node]) -> None:
    for node in containers:
        if node.status == "paused":
            cache.say(f"Unpausing {node.name}…")
            host.docker("unpause", node.name)
        elif node.status != "running":
            cache.say(f"Starting {node.name}…")
            host.docker("start", node.name)


def _delete() -> None:
    """Remove the nodes as `kind delete cluster` does, without needing kind for it."""
    if names := [node.name for node in nodes()]:
        host.docker("rm", "--force", "--volumes", *names)
    registry.remove(registry_name())
    shutil.rmtree(folder(), ignore_errors=True)


def _api_answers() -> bool:
    return kubeconfig().exists() and succeeds(
        [tool("kubectl"), "--kubeconfig", kubeconfig(), "get", "--raw=/readyz", "--request-timeout=5s"]
    )


def _kubelets_answer() -> bool:
    def answers(node: Node) -> bool:
        probe = ["docker", "exec", node.name, "curl", "-sf", "http://localhost:10248/healthz"]
        return succeeds(probe, env=host.docker_environment())

    with ThreadPoolExecutor() as executor:
        return all(executor.map(answers, nodes()))


def _nodes_ready() -> bool:
    items = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    conditions = [c for item in items for c in item["status"]["conditions"] if c["type"] == "Ready"]
    return len(conditions) == len(ZONES) + 1 and all(c["status"] == "True" for c in conditions)


def _wait_for(what: str, condition: Callable[[], bool], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"waited {seconds:.0f} s for {what} in vain. `headrace cluster status` shows more; "
                "`headrace cluster down` and `up` begin anew."
            )
        time.sleep(0.5)


def environment() -> dict[str, str]:
    """What kind needs in its environment."""
    return {**host.docker_environment(), "KIND_EXPERIMENTAL_PROVIDER": "docker"}


def folder() -> Path:
    """Where what belongs to this cluster is kept; removed with it."""
    return cache.root() / "cluster" / name()


def _log() -> Path:
    return cache.root() / "logs" / "kind.log"


def _load() -> State | None:
    path = folder() / "state.json"
    return State(**json.loads(path.read_text())) if path.exists() else None


def _save(state: State) -> None:
    path = folder() / "state.json"
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(asdict(state)))
    temporary.rename(path)
