"""Why a worker finds no node: which demand no node meets, which node comes nearest, and what to do.

The scheduler says how many nodes fail which check. What people need is the other half: what was asked, what the
nearest node offers, and where in the spec to change it. Compared is what a node offers in all (allocatable), which
tells "no node is big enough" from "the nodes are busy".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from controllers.runtime.objects import Manifest
from controllers.runtime.podstate import Problem, last_line, name_of, unschedulable
from controllers.trainingjob.builders import GPU_PRODUCT, ZONE
from headrace.api.meta import parse_quantity

_REASONS = {
    "cpu": "InsufficientCPU",
    "memory": "InsufficientMemory",
    "ephemeral-storage": "InsufficientEphemeralStorage",
}


class Demand(NamedTuple):
    """One thing that a pod asks of its node.

    Attributes:
        name: Resource or label.
        wanted: What is asked, as written.
        met: Whether a node meets it.
        offered: What a node has, as written.
        is_resource: Resource or label.
    """

    name: str
    wanted: str
    met: Callable[[Manifest], bool]
    offered: Callable[[Manifest], str]
    is_resource: bool


def explain(pod: Manifest, cluster: Sequence[Manifest], gpu: str | None) -> Problem | None:
    """Why the scheduler found no node for this pod, or None when it did not say so.

    Args:
        pod: The worker.
        cluster: Every node.
        gpu: Resource name of the GPUs that the job asks for.
    """
    said = unschedulable(pod)
    if said is None:
        return None
    scheduler = f"Scheduler: {last_line(said, 600)}"
    start = f"pod {name_of(pod)} finds no node: "
    if not cluster:
        return Problem("NoMatchingNode", f"{start}the cluster has none. {scheduler}")
    demands = [*_resource_demands(pod, gpu), *_label_demands(pod)]
    open_nodes = [node for node in cluster if is_open(node, pod)] or list(cluster)
    # The whole demand can be met by a node, whoever occupies it now: then it is a matter of what is free.
    if any(all(demand.met(node) for demand in demands) for node in open_nodes):
        return _busy(start, said, scheduler, demands, gpu)
    nearest = max(
        sorted(open_nodes, key=lambda node: str(node["metadata"]["name"])), key=lambda node: _near(node, demands)
    )
    unmet = [demand for demand in demands if not any(demand.met(node) for node in open_nodes)]
    # Each demand is met by some node, no node meets them all: name what the nearest lacks.
    lacking = unmet or [demand for demand in demands if not demand.met(nearest)]
    first = _most_telling(lacking, gpu)
    asked = ", ".join(f"{demand.name}={demand.wanted}" for demand in demands)
    offers = ", ".join(f"{demand.name}={demand.offered(nearest)}" for demand in demands)
    nobody = "no node offers it" if unmet else "no single node offers it together with the rest"
    return Problem(
        _reason(first, gpu),
        f"{start}it asks for {first.name}={first.wanted} and {nobody}. Asked in all: {asked}. "
        f"Nearest node: {nearest['metadata']['name']} ({_zone(nearest)}) with {offers}. "
        f"{_remedy(first, gpu, open_nodes)}. {scheduler}",
    )


def _near(node: Manifest, demands: Sequence[Demand]) -> tuple[int, int, float]:
    """How near a node comes: demands met, labels among them, and how much of each resource it has."""
    met = [demand for demand in demands if demand.met(node)]
    shares = [
        min(1.0, parse_quantity(demand.offered(node)) / (parse_quantity(demand.wanted) or 1.0))
        for demand in demands
        if demand.is_resource
    ]
    return len(met), sum(not demand.is_resource for demand in met), sum(shares)


def is_open(node: Manifest, pod: Manifest) -> bool:
    """The node takes new pods, and this pod tolerates its taints."""
    if node.get("spec", {}).get("unschedulable"):
        return False
    tolerations = pod["spec"].get("tolerations") or ()
    return all(
        taint["effect"] == "PreferNoSchedule" or any(_tolerates(item, taint) for item in tolerations)
        for taint in node.get("spec", {}).get("taints") or ()
    )


def _tolerates(toleration: Manifest, taint: Manifest) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("key")) and (toleration.get("value") or "") == (taint.get("value") or "")


def _resource_demands(pod: Manifest, gpu: str | None) -> list[Demand]:
    wanted: dict[str, str] = {}
    for container in pod["spec"].get("containers") or ():
        resources = container.get("resources") or {}
        # A limit without a request is the request (the API server fills it in).
        wanted |= {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    first = sorted(wanted, key=lambda name: (name != gpu, name))
    return [_resource(name, str(wanted[name])) for name in first]


def _resource(name: str, wanted: str) -> Demand:
    def offered(node: Manifest) -> str:
        return str((node.get("status", {}).get("allocatable") or {}).get(name, 0))

    return Demand(name, wanted, lambda node: parse_quantity(offered(node)) >= parse_quantity(wanted), offered, True)


def _label_demands(pod: Manifest) -> list[Demand]:
    return [_label(name, wanted) for name, wanted in (pod["spec"].get("nodeSelector") or {}).items()]


def _label(name: str, wanted: str) -> Demand:
    def offered(node: Manifest) -> str:
        return _labels(node).get(name, "(unset)")

    return Demand(name, wanted, lambda node: _labels(node).get(name) == wanted, offered, False)


def _labels(node: Manifest) -> Mapping[str, str]:
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    return labels


def _zone(node: Manifest) -> str:
    zone = _labels(node).get(ZONE)
    return f"zone {zone}" if zone else "no zone label"


def _most_telling(lacking: Sequence[Demand], gpu: str | None) -> Demand:
    return min(lacking, key=lambda demand: (demand.name != gpu, demand.is_resource))


def _reason(demand: Demand, gpu: str | None) -> str:
    if not demand.is_resource:
        return "NoMatchingNode"
    if demand.name == gpu:
        return "InsufficientGPU"
    return _REASONS.get(demand.name, "InsufficientResource")


def resource_reason(name: str) -> str:
    """The reason of a condition that this resource is short."""
    if name.endswith("/gpu"):
        return "InsufficientGPU"
    return _REASONS.get(name, "InsufficientResource")


def _remedy(demand: Demand, gpu: str | None, nodes: Sequence[Manifest]) -> str:
    if demand.name == gpu:
        return (
            "Add such a node with its device plugin, ask for fewer in gpu.count, or leave spec.gpu out to train on CPU"
        )
    if demand.is_resource:
        return f"Lower resources.requests and limits of {demand.name}, or add a bigger node"
    field = "gpu.product" if demand.name == GPU_PRODUCT else "nodeSelector"
    values = sorted({_labels(node)[demand.name] for node in nodes if demand.name in _labels(node)})
    have = f"nodes have {', '.join(values[:8])}" if values else "no node has this label"
    return f"Change {field} ({have}), or label or add a node"


def _busy(start: str, said: str, scheduler: str, demands: Sequence[Demand], gpu: str | None) -> Problem:
    asked = ", ".join(f"{demand.name}={demand.wanted}" for demand in demands) or "no resources"
    for demand in demands:
        if f"Insufficient {demand.name}" in said:
            return Problem(
                _reason(demand, gpu),
                f"{start}it asks for {asked}; nodes of that size exist, but other pods hold their {demand.name}. It "
                f"starts by itself once enough is free; or lower resources, or add a node. {scheduler}",
            )
    if "topology spread constraints" in said:
        return Problem(
            "ZoneSpreadUnsatisfied",
            f"{start}topology.zoneSpread is Spread and the zone whose turn it is has no room. It starts by itself once "
            f"there is; or add a node in that zone, or set topology.zoneSpread to Pack or None. {scheduler}",
        )
    if "untolerated taint" in said:
        return Problem(
            "UntoleratedTaint",
            f"{start}the nodes that would do are tainted. Add tolerations, or remove the taint. {scheduler}",
        )
    return Problem("Unschedulable", f"{start}it asks for {asked}. {scheduler}")
