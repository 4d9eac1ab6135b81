"""How the processes of a run work together, on which accelerators, and where they sit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.schema import DNSLabel, Model, ObjectName, PositiveDuration, Quantity, Rule, remedy, rules
from headrace.api.trainingjob.parameter_server import ParameterServer


class RDMA(Model):
    """Network adapters that reach other nodes' memory: InfiniBand or RoCE."""

    resource_name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$",
            max_length=253,
            json_schema_extra=remedy(
                r"self.matches(r'^[a-z0-9.-]+/[a-zA-Z0-9._-]+$')",
                "write an extended resource such as rdma/hca_shared_devices_a",
            ),
        ),
    ]
    """Extended resource that the RDMA device plugin offers."""
    count: Annotated[int, Field(ge=1, le=16)] = 1
    """How many of each worker."""
    devices: Annotated[str, Field(max_length=253)] | None = None
    """Adapters that NCCL may use, as its NCCL_IB_HCA has them, such as mlx5; unset: all that it finds."""


@rules(
    Rule(
        "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
        "set exactly one of resourceClaimTemplateName (one for each worker) and resourceClaimName (one for all)",
        check=lambda claim: (claim.resource_claim_name is None) != (claim.resource_claim_template_name is None),
    )
)
class ResourceClaim(Model):
    """Devices by dynamic resource allocation (DRA)."""

    name: DNSLabel
    """Name within the job."""
    resource_claim_template_name: ObjectName | None = None
    """ResourceClaimTemplate of which each worker gets a claim."""
    resource_claim_name: ObjectName | None = None
    """ResourceClaim that all workers share."""


class GPU(Model):
    """GPUs of each worker."""

    count: Annotated[int, Field(ge=1, le=16)] = 1
    """GPUs of each worker; one process is started per GPU."""
    product: Annotated[str, Field(max_length=63)] | None = None
    """Product that the node must have, as the GPU operator labels it in nvidia.com/gpu.product."""
    resource_name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$",
            max_length=253,
            json_schema_extra=remedy(
                r"self.matches(r'^[a-z0-9.-]+/[a-zA-Z0-9._-]+$')",
                "write an extended resource such as nvidia.com/gpu or amd.com/gpu",
            ),
        ),
    ] = "nvidia.com/gpu"
    """Extended resource that the device plugin offers."""
    resource_claim: DNSLabel | None = None
    """Entry of resourceClaims that the GPUs come from, instead of the device plugin's resource."""
    min_memory: Quantity | None = None
    """Memory that each GPU must have, such as 80Gi, by the label nvidia.com/gpu.memory of the node."""
    nvlink: Literal["None", "Prefer", "Require"] = "None"
    """Workers on nodes of one NVLink domain (label nvidia.com/gpu.clique): Prefer: where they fit. Require: or not at
    all."""
    rdma: RDMA | None = None
    """InfiniBand or RoCE adapters for NCCL."""


class Pipeline(Model):
    """How the layers are spread over processes."""

    stages: Annotated[int, Field(ge=2, le=64)] = 2
    """Processes of one pipe. A job with more processes has several pipes, each with its part of the batch."""
    schedule: Literal["GPipe", "1F1B", "Interleaved1F1B"] = "1F1B"
    """1F1B: forward and backward passes take turns, which keeps few activations. GPipe: all forward passes first.
    Interleaved1F1B: two stages per process, which halves the time that processes wait for each other."""
    microbatches: Annotated[int, Field(ge=1, le=1024)] = 8
    """Parts of a batch, one after another; with p stages and m microbatches (p-1)/(m+p-1) of the time is waiting."""


class LocalSGD(Model):
    """How often replicas in different zones meet."""

    inner_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Steps within a zone between two meetings of the zones."""
    outer_learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.7
    """How far the common model follows the replicas' mean; 1 with outerMomentum 0 is plain averaging."""
    outer_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Nesterov momentum of the common model."""


class Preflight(Model):
    """What the links between workers are measured for before training begins."""

    min_bandwidth: Quantity | None = None
    """Bytes per second below which a link counts as slow, such as 100Mi. Unset: a quarter of the median of the links of
    its kind (within a node, within a zone, between zones)."""
    max_round_trip: PositiveDuration | None = None
    """Time there and back above which a link counts as slow, such as 5ms."""
    on_slow: Literal["Warn", "Fail"] = "Warn"
    """Warn: the condition SlowLink, and training begins. Fail: the job ends with reason LinkUnusable."""
    timeout: PositiveDuration = "2m"
    """Time in which a link that carries nothing may come to life; then the job ends with reason LinkUnusable."""


@rules(
    Rule(
        "self.type == 'Pipeline' ? has(self.pipeline) : !has(self.pipeline)",
        "topology.pipeline goes with type Pipeline: set both or neither",
        ".pipeline",
        lambda topology: (topology.type == "Pipeline") == (topology.pipeline is not None),
    ),
    Rule(
        "self.type == 'LocalSGD' || !has(self.localSGD)",
        "topology.localSGD goes with type LocalSGD: set that type or remove localSGD",
        ".localSGD",
        lambda topology: topology.type == "LocalSGD" or topology.local_sgd is None,
    ),
    Rule(
        "(self.type == 'ParameterServer') == has(self.parameterServer)",
        "topology.parameterServer goes with type ParameterServer: set both or neither",
        ".parameterServer",
        lambda topology: (topology.type == "ParameterServer") == (topology.parameter_server is not None),
    ),
    Rule(
        "self.type == 'AllReduce' || self.allReduce == 'Ring'",
        "topology.allReduce chooses how type AllReduce sums gradients: leave it out with other types",
        ".allReduce",
        lambda topology: topology.type == "AllReduce" or topology.all_reduce == "Ring",
    ),
    Rule(
        "(self.sharding == 'NoShard' && self.tensorParallel == 1) || (self.type == 'AllReduce' && "
        "self.allReduce == 'Ring')",
        "topology.sharding and topology.tensorParallel go with type AllReduce and allReduce Ring: leave the others out",
        ".sharding",
        lambda topology: (
            (topology.sharding == "NoShard" and topology.tensor_parallel == 1)
            or (topology.type == "AllReduce" and topology.all_reduce == "Ring")
        ),
    ),
    Rule(
        "self.sharding != 'HybridShard' || self.tensorParallel == 1",
        "topology.tensorParallel goes with sharding NoShard and FullShard: choose one of them, or set it to 1",
        ".tensorParallel",
        lambda topology: topology.sharding != "HybridShard" or topology.tensor_parallel == 1,
    ),
)
class Topology(Model):
    """How the workers train one model together and where they sit."""

    type: Literal["AllReduce", "Pipeline", "LocalSGD", "ParameterServer"] = "AllReduce"
    """AllReduce: every worker holds the whole model, gradients are averaged after each backward pass. Pipeline: layers
    are spread over workers. LocalSGD: the workers of a zone average gradients, zones average models now and then.
    ParameterServer: servers hold the model, workers push gradients and pull weights and may come and go."""
    all_reduce: Literal["Ring", "Tree", "Hierarchical"] = "Ring"
    """Ring: least traffic per worker. Tree: fewer messages in a row, for small models over far links. Hierarchical:
    first within a zone, then between zones, so that slow links carry each gradient once per zone."""
    sharding: Literal["NoShard", "FullShard", "HybridShard"] = "NoShard"
    """NoShard: every worker holds the whole model. FullShard: each keeps a part of the parameters, gradients and
    optimizer state, and layers are gathered when they are used (FSDP2). HybridShard: the workers of a zone share a copy
    of the model like that, zones average gradients."""
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that compute each layer together; they should share a node. More processes than that are data
    parallel."""
    pipeline: Pipeline | None = None
    """Stages and schedule of type Pipeline."""
    local_sgd: Annotated[LocalSGD | None, Field(alias="localSGD")] = None
    """Inner and outer steps of type LocalSGD."""
    parameter_server: ParameterServer | None = None
    """Servers and consistency of type ParameterServer."""
    preflight: Preflight | None = None
    """Measure the link from each worker to the one whose rank comes next before training begins, and again for the
    links of a replaced worker."""
    zone_spread: Literal["Spread", "Pack", "None"] = "Spread"
    """Spread: workers are balanced over zones. Pack: workers share a zone where they fit. None: no preference."""
