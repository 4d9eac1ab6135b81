"""Which processes hold which part of a sharded model: a torch DeviceMesh with the dimensions replicate, shard, tensor.

    8 processes, FullShard                       shard: 0 1 2 3 4 5 6 7
    the same in zones a (0-3) and b (4-7),       replicate: a / b
    HybridShard                                      shard: 0 1 2 3 / 4 5 6 7
    the same with tensorParallel 2               shard: (0 1) (2 3) (4 5) (6 7), tensor: within the brackets

Ranks are given so that neighbours share a node, then a zone; a layer that is split talks most and is therefore split
among neighbours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.api.trainingjob import Topology
from headrace.training.errors import ConfigurationError
from headrace.training.strategy.groups import all_gather_text, group_by_place

logger = logging.getLogger(__name__)

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"


@dataclass(frozen=True, slots=True)
class Layout:
    """Ranks by replica, then by part of the model, then by part of a layer.

    Attributes:
        ranks: Shape (replicas, shards, tensor).
    """

    ranks: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def replicas(self) -> int:
        """Copies of the model."""
        return len(self.ranks)

    @property
    def shards(self) -> int:
        """Parts of a copy, besides the splitting of layers."""
        return len(self.ranks[0])

    @property
    def tensor(self) -> int:
        """Processes that compute a layer together."""
        return len(self.ranks[0][0])


def layout(topology: Topology, world_size: int, places: Sequence[str] = ()) -> Layout:
    """Who holds what.

    Args:
        topology: Of the job; type AllReduce.
        world_size: Processes.
        places: Zone (or node) of each rank, for HybridShard.

    Raises:
        ConfigurationError: the processes are no multiple of tensorParallel.

    >>> from headrace.api.trainingjob import Topology
    >>> layout(Topology(sharding="HybridShard"), 4, ["a", "b", "a", "b"]).ranks
    (((0,), (2,)), ((1,), (3,)))
    """
    tensor = topology.tensor_parallel
    if world_size % tensor:
        raise ConfigurationError(
            "topology.tensorParallel",
            f"{tensor}, with {world_size} processes",
            "make the processes (numWorkers times gpu.count) a multiple of tensorParallel",
        )
    if topology.sharding == "HybridShard":
        zones = group_by_place(places)
        # All replicas have to be cut alike: in parts that a zone of any size is made up of.
        size = math.gcd(*map(len, zones))
        return Layout(
            tuple(
                tuple((rank,) for rank in zone[start : start + size])
                for zone in zones
                for start in range(0, len(zone), size)
            )
        )
    rows = tuple(tuple(range(start, start + tensor)) for start in range(0, world_size, tensor))
    if topology.sharding == "FullShard":
        return Layout((rows,))
    return Layout(tuple((row,) for row in rows))


def device_mesh(topology: Topology, device: Any, world_size: int, place: str) -> Any:
    """The mesh of this run, with the dimensions replicate, shard and tensor. Collective.

    Args:
        topology: Of the job; type AllReduce.
        device: This process's.
        world_size: Processes.
        place: This process's zone or node.

    Raises:
        ConfigurationError: the processes are no multiple of tensorParallel.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    places = all_gather_text(place, device) if topology.sharding == "HybridShard" else ()
    found = layout(topology, world_size, places)
    if dist.get_rank() == 0:
        text = f"{found.replicas} replicas of {found.shards} shards"
        logger.info("%s%s", text, f", layers split over {found.tensor}" if found.tensor > 1 else "")
        if topology.sharding == "HybridShard" and found.shards == 1:
            logger.warning(
                "HybridShard shards nothing: the zones have %s processes, which have no common divisor; "
                "give each zone as many workers",
                ", ".join(str(len(zone)) for zone in group_by_place(places)),
            )
    return DeviceMesh(device.type, torch.tensor(found.ranks), mesh_dim_names=(REPLICATE, SHARD, TENSOR))
