"""Data parallelism: every process holds the model, gradients are averaged after each backward pass.

Ring is what gloo and NCCL do by default (Patarasuk and Yuan 2009): 2(p-1) messages of 1/p of the gradient, the least
traffic per process. Tree sends whole gradients up and down a binary tree: 2 log2(p) messages in a row instead of
2(p-1), faster where gradients are small and links far. Hierarchical reduces within a zone first, then among one process
of each zone, and hands the sum back: the slow links carry each gradient once per zone, not once per process.

The gradient of the mean loss over the global batch is the sum of the parts' gradients divided by the batch's rows.
Averages over processes are taken, so each part's summed loss is scaled by processes / rows: exact, also when the parts
differ in size or one is empty.
"""

from __future__ import annotations

from typing import Any

from headrace.api.trainingjob import Topology
from headrace.training.process_group import Group
from headrace.training.strategy.base import Loss, MakeOptimizer
from headrace.training.strategy.groups import Neighbours, neighbours


class AllReduce:
    """DistributedDataParallel, with the all-reduce that the topology asks for; a plain model in a run of one.

    Attributes:
        parallel: It, which knows how long its passes take.
    """

    counts = True
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
        self.part = (rank, world_size)
        self._model = model
        self._loss = loss
        self.parallel = _parallel(model, topology, group, rank, world_size, place)
        self._optimizer = make_optimizer(self.parallel.parameters())

    def step(self, features: Any, labels: Any, rows: int) -> Any:
        self._optimizer.zero_grad(set_to_none=False)
        loss = self._loss(self.parallel(features), labels)
        (loss * (self.part[1] / rows)).backward()
        self._optimizer.step()
        return loss.detach()

    def may_save(self) -> bool:
        return True

    def gather(self) -> None:
        """Nothing to do: every process holds everything."""

    def objects(self) -> dict[str, Any]:
        return {"model": self._model, "optimizer": self._optimizer}

    def restored(self) -> None:
        """Nothing to do: it was loaded into the model itself."""

    def finish(self) -> Any:
        return self._model


def _parallel(model: Any, topology: Topology, group: Group, rank: int, world_size: int, place: str) -> Any:
    """The model with gradients averaged over processes.

    DDP lays its buckets out anew after the first backward pass, which can change the order of sums. Two passes without
    effect before training put that behind us, so that a resumed run computes bit for bit what an uninterrupted one
    does. They also show at once whether every process can be reached.
    """
    if world_size == 1:
        return model
    import torch
    from torch.nn.parallel import DistributedDataParallel

    devices = [group.device] if group.device.type == "cuda" else None
    parallel = DistributedDataParallel(model, device_ids=devices)
    if topology.all_reduce == "Hierarchical":
        # Lambdas, for torch wants its own type in a hook's signature, and importing it would import torch here.
        near = neighbours(place, rank, group.device)
        parallel.register_comm_hook(near, lambda state, bucket: hierarchical_mean(state, bucket))  # noqa: PLW0108
    elif topology.all_reduce == "Tree" and group.backend != "nccl":  # NCCL has its own; see process_group.
        parallel.register_comm_hook((rank, world_size), lambda state, bucket: tree_mean(state, bucket))  # noqa: PLW0108
    width = model[0].in_features
    for _ in range(2):
        parallel(torch.zeros(1, width, device=group.device)).sum().backward()
    parallel.zero_grad(set_to_none=False)
    return parallel


def hierarchical_mean(state: Neighbours, bucket: Any) -> Any:
    """DDP communication hook: the mean over all processes, crossing between groups once per group."""
    import torch
    import torch.distributed as dist

    buffer = bucket.buffer()
    if state.near is not None:
        dist.reduce(buffer, dst=state.leader, group=state.near)
    if state.leaders is not None:
        dist.all_reduce(buffer, group=state.leaders)
    if state.near is not None:
        dist.broadcast(buffer, src=state.leader, group=state.near)
    buffer.div_(dist.get_world_size())
    done: Any = torch.futures.Future()
    done.set_result(buffer)
    return done


def tree_mean(state: tuple[int, int], bucket: Any) -> Any:
    """DDP communication hook: the mean over all processes by a binary tree rooted at rank 0."""
    import torch
    import torch.distributed as dist

    rank, world_size = state
    buffer = bucket.buffer()
    children = [child for child in (2 * rank + 1, 2 * rank + 2) if child < world_size]
    incoming = [torch.empty_like(buffer) for _ in children]
    for request in [dist.irecv(part, src=child) for part, child in zip(incoming, children, strict=True)]:
        request.wait()
    for part in incoming:
        buffer.add_(part)
    if rank > 0:
        dist.send(buffer, dst=(rank - 1) // 2)
        dist.recv(buffer, src=(rank - 1) // 2)
    else:
        buffer.div_(world_size)
    for request in [dist.isend(buffer, dst=child) for child in children]:
        request.wait()
    done: Any = torch.futures.Future()
    done.set_result(buffer)
    return done
