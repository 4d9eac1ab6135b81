"""Models that no process holds as a whole: fully sharded data parallelism and tensor parallelism, alone or together.

Sharded (torch's FSDP2; Rajbhandari et al. 2020, ZeRO stage 3): a process keeps a part of every parameter, gradient and
optimizer state. A layer's parameters are gathered before they are used and dropped afterwards, its gradients are
reduced and scattered, so memory per process falls with the number of processes, for half as much traffic again as
all-reduce. HybridShard does that within a zone and averages gradients between zones, which then carry a share of the
gradient each instead of all parameters twice.

Tensor parallel (torch's DTensor; Shoeybi et al. 2019, Megatron-LM): processes compute a layer together. Layers come in
pairs: the first is split by output columns, the second by input rows, so a pair needs one sum forward and one back.

Parameters are DTensors under the same names as in an unsharded model, so checkpoints hold each process's pieces and fit
any other number of processes, with and without sharding.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from headrace.api.trainingjob import Topology
from headrace.training.errors import ConfigurationError
from headrace.training.process_group import Group
from headrace.training.strategy.base import Loss, MakeOptimizer
from headrace.training.strategy.cpu_sharding import on_cpu
from headrace.training.strategy.mesh import REPLICATE, SHARD, TENSOR, device_mesh


class Sharded:
    """One process's part of a model.

    Args:
        model: Linear layers and activations in turn; every process builds all of it from the same seed.
        make_optimizer: Makes the optimizer of this process's part.
        loss: Loss of the last layer's outputs.
        topology: With `sharding` or `tensorParallel`.
        group: This process's device.
        rank, world_size: This process among all.
        place: This process's zone or node.

    Raises:
        ConfigurationError: the topology does not fit the model or the number of processes.
    """

    gathers = False

    def __init__(
        self,
        model: Any,
        make_optimizer: MakeOptimizer,
        loss: Loss,
        topology: Topology,
        group: Group,
        rank: int,
        world_size: int,
        place: str,
    ) -> None:
        from torch.distributed.fsdp import fully_shard

        self._device, self._rank = group.device, rank
        mesh = device_mesh(topology, group.device, world_size, place)
        replicas, shards, tensor = mesh.mesh.shape
        mine = mesh.get_coordinate()
        self.part = (mine[0] * shards + mine[1], replicas * shards)
        self.counts = mine[2] == 0
        self._model, self._loss = model, loss
        if tensor > 1:
            _split_layers(model, mesh[TENSOR])
        self._shards = topology.sharding != "NoShard"
        layers = [module for module in model if next(module.parameters(), None) is not None]
        whole = layers
        if self._shards:
            whole = [layer for layer in layers if tensor > 1 and not _divides_evenly(layer, shards)]
            parts = mesh[REPLICATE, SHARD] if replicas > 1 else mesh[SHARD]
            with on_cpu(group.device):
                for layer in layers:
                    if layer not in whole:
                        fully_shard(layer, mesh=parts)
                if not whole:
                    fully_shard(model, mesh=parts)
        self._whole = [parameter for layer in whole for parameter in layer.parameters()]
        """Those whose gradients are added up here: fully_shard does it for the others."""
        self._peers = (mesh[SHARD] if self._shards else mesh[REPLICATE]).get_group() if self._whole else None
        self._optimizer = make_optimizer(model.parameters())

    def step(self, features: Any, labels: Any, rows: int) -> Any:
        self._optimizer.zero_grad()
        with on_cpu(self._device):
            loss = self._loss(self._model(features), labels)
            # fully_shard takes the mean over its processes.
            (loss * ((self.part[1] if self._shards else 1) / rows)).backward()
        if self._peers is not None and self.part[1] > 1:
            self._add_up()
        self._optimizer.step()
        return loss.detach()

    def may_save(self) -> bool:
        return True

    def gather(self) -> None:
        """Nothing to do: each process saves its own part."""

    def objects(self) -> dict[str, Any]:
        return {"model": self._model, "optimizer": self._optimizer}

    def restored(self) -> None:
        """Nothing to do: it was loaded into the model itself."""

    def finish(self) -> Any:
        """On rank 0 a plain model with the whole parameters; they are assembled one after another. Collective."""
        from torch import nn

        whole: dict[str, Any] = {}
        for name, parameter in self._model.named_parameters():
            tensor = parameter.detach().full_tensor()
            if self._rank == 0:
                whole[name] = tensor
        if self._rank != 0:
            return self._model
        plain = nn.Sequential(*[_like(module) for module in self._model]).to(self._device)
        plain.load_state_dict(whole)
        return plain

    def _add_up(self) -> None:
        """Sum the gradients of whole layers over replicas, or take their mean as fully_shard does; one message."""
        import torch
        import torch.distributed as dist

        gradients = [parameter.grad.to_local() for parameter in self._whole]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat, group=self._peers)
        if self._shards:
            flat /= self.part[1]
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


def _split_layers(model: Any, mesh: Any) -> None:
    """Split the linear layers of a chain over the processes of a mesh, in pairs; a last one without a pair by columns.

    Raises:
        ConfigurationError: a layer between two of a pair has no multiple of the processes as its width.
    """
    from torch import nn
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    size = mesh.size()
    linear = [(name, module) for name, module in model.named_children() if isinstance(module, nn.Linear)]
    plan: dict[str, Any] = {}
    for index, (name, module) in enumerate(linear):
        if index % 2:
            plan[name] = RowwiseParallel()
        elif index + 1 == len(linear):
            plan[name] = ColwiseParallel(output_layouts=Replicate())
        elif module.out_features % size:
            raise ConfigurationError(
                "topology.tensorParallel",
                f"{size}, and layer {index} has {module.out_features} outputs",
                "make each of the classifier's hiddenSizes a multiple of tensorParallel",
            )
        else:
            plan[name] = ColwiseParallel()
    with warnings.catch_warnings():
        # Nothing random is computed on a split tensor here.
        warnings.filterwarnings("ignore", "DTensor random operators", UserWarning)
        parallelize_module(model, mesh, plan)


def _divides_evenly(layer: Any, shards: int) -> bool:
    """Whether what is left of a split layer's parameters can be cut further; fully_shard cuts those evenly or not.

    The last layer has as many outputs as there are classes, which may be any number.
    """
    for parameter in layer.parameters():
        (placement,) = parameter.placements
        already = parameter.device_mesh.size() if placement.is_shard(0) else 1
        if parameter.shape[0] % (shards * already):
            return False
    return True


def _like(module: Any) -> Any:
    from torch import nn

    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features)
    return copy.copy(module)


def is_sharded(topology: Topology, world_size: int) -> bool:
    """Whether processes hold parts of the model."""
    return world_size > 1 and (topology.sharding != "NoShard" or topology.tensor_parallel > 1)


__all__: Sequence[str] = ("Sharded", "is_sharded")
