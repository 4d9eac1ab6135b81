"""GPUs, their interconnect and network adapters in a worker's pod."""

from __future__ import annotations

import math

from controllers.runtime import pods
from controllers.runtime.objects import Manifest
from headrace.api.meta import parse_quantity
from headrace.api.trainingjob import TrainingJobSpec

GPU_MEMORY = "nvidia.com/gpu.memory"
"""Label of GPU feature discovery: MiB of a GPU of the node."""
NVLINK_DOMAIN = "nvidia.com/gpu.clique"
"""Label of GPU feature discovery: the NVLink domain that the node's GPUs are in."""
MEBIBYTE = 2**20


def limits(spec: TrainingJobSpec) -> dict[str, int | str]:
    """Extended resources of a worker."""
    gpu = spec.gpu
    if gpu is None:
        return {}
    found: dict[str, int | str] = {} if gpu.resource_claim else {gpu.resource_name: gpu.count}
    if gpu.rdma is not None:
        found[gpu.rdma.resource_name] = gpu.rdma.count
    return found


def environment(spec: TrainingJobSpec) -> list[Manifest]:
    """What NCCL is told of the adapters."""
    rdma = spec.gpu.rdma if spec.gpu else None
    return [pods.variable("NCCL_IB_HCA", rdma.devices)] if rdma is not None and rdma.devices else []


def with_memory(spec: TrainingJobSpec, affinity: Manifest) -> Manifest:
    """The affinity of a pod, on nodes whose GPUs have enough memory besides.

    A label can be compared as an integer alone, with more than. Of nodeSelectorTerms one has to hold, so each gets it.
    """
    if spec.gpu is None or spec.gpu.min_memory is None:
        return affinity
    mebibytes = math.ceil(parse_quantity(spec.gpu.min_memory) / MEBIBYTE)
    enough = {"key": GPU_MEMORY, "operator": "Gt", "values": [str(mebibytes - 1)]}
    nodes = affinity.get("nodeAffinity") or {}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = (nodes.get(required) or {}).get("nodeSelectorTerms") or [{}]
    both = [{**term, "matchExpressions": [*(term.get("matchExpressions") or ()), enough]} for term in terms]
    return {**affinity, "nodeAffinity": {**nodes, required: {"nodeSelectorTerms": both}}}


def nvlink(spec: TrainingJobSpec, labels: dict[str, str]) -> Manifest:
    """Workers in the NVLink domain of the first one."""
    if spec.gpu is None or spec.gpu.nvlink == "None":
        return {}
    term = {"topologyKey": NVLINK_DOMAIN, "labelSelector": {"matchLabels": labels}}
    if spec.gpu.nvlink == "Require":
        return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    weighted = {"weight": 100, "podAffinityTerm": term}
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weighted]}}
