"""DiLoCo across zones: inner steps within a zone, an outer step over the slow link every now and then.

The processes of a zone form a replica: they average gradients with each other at every step, as in AllReduce. Every
`innerSteps` steps the replicas compare how far each has moved from the common anchor; the mean of these moves is the
gradient of an outer Nesterov optimiser that moves the anchor, and all go on from there. Links between zones carry one
model per `innerSteps` steps and zone (Douillard et al. 2023, "DiLoCo: Distributed Low-Communication Training of
Language Models", algorithm 1, with its outer learning rate 0.7 and momentum 0.9). An outer learning rate of 1 without
momentum makes it local SGD (Stich 2019).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.api.trainingjob import LocalSGD as Settings
from headrace.training.process_group import Group
from headrace.training.strategy.base import Loss, MakeOptimizer
from headrace.training.strategy.groups import neighbours


class LocalSGD:
    """One process of one replica."""

    counts = True
    gathers = False

    def __init__(
        self,
        model: Any,
        make_optimizer: MakeOptimizer,
        loss: Loss,
        settings: Settings,
        group: Group,
        rank: int,
        world_size: int,
        place: str,
    ) -> None:
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        self.part = (rank, world_size)
        self._model, self._loss, self._settings = model, loss, settings
        self._near = neighbours(place, rank, group.device)
        self._parallel = model
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0)
        if self._near.near is not None:
            devices = [group.device] if group.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(model, device_ids=devices, process_group=self._near.near)
        self._optimizer = make_optimizer(self._parallel.parameters())
        self._anchor = [torch.nn.Parameter(item.detach().clone()) for item in model.parameters()]
        self._outer = torch.optim.SGD(
            self._anchor,
            lr=settings.outer_learning_rate,
            momentum=settings.outer_momentum,
            nesterov=settings.outer_momentum > 0,
        )
        self._steps = 0

    @property
    def replicas(self) -> int:
        """Groups that only meet at outer steps."""
        return len(self._near.groups)

    def step(self, features: Any, labels: Any, rows: int) -> Any:
        self._optimizer.zero_grad(set_to_none=False)
        loss = self._loss(self._parallel(features), labels)
        # The mean over the replica's rows; DDP averages over its processes.
        mine = self._near.mine
        ours = sum(len(part) for rank, part in enumerate(np.array_split(range(rows), self.part[1])) if rank in mine)
        (loss * (len(mine) / max(1, ours))).backward()
        self._optimizer.step()
        self._steps += 1
        if self._steps % self._settings.inner_steps == 0:
            self._meet()
        return loss.detach()

    def may_save(self) -> bool:
        """Between two outer steps each replica is somewhere else."""
        return self._steps % self._settings.inner_steps == 0

    def gather(self) -> None:
        """Nothing to do: after an outer step every process holds everything."""

    def objects(self) -> dict[str, Any]:
        return {"model": self._model, "optimizer": self._optimizer, "outer": self._outer}

    def restored(self) -> None:
        """Checkpoints are of outer steps, where model and anchor are equal."""
        self._steps = 0
        self._remember()

    def finish(self) -> Any:
        """The replicas meet a last time."""
        if not self.may_save():
            self._meet()
        return self._model

    def _meet(self) -> None:
        import torch
        import torch.distributed as dist

        near = self._near
        with torch.no_grad():
            for anchor, parameter in zip(self._anchor, self._model.parameters(), strict=True):
                anchor.grad = anchor - parameter
            flat = torch.cat([anchor.grad.reshape(-1) for anchor in self._anchor])
            if near.leaders is not None:
                dist.all_reduce(flat, group=near.leaders)
            if near.near is not None:
                dist.broadcast(flat, src=near.leader, group=near.near)
            flat.div_(self.replicas)
            start = 0
            for anchor in self._anchor:
                anchor.grad.copy_(flat[start : start + anchor.numel()].view_as(anchor))
                start += anchor.numel()
            self._outer.step()
            for anchor, parameter in zip(self._anchor, self._model.parameters(), strict=True):
                parameter.copy_(anchor)

    def _remember(self) -> None:
        import torch

        with torch.no_grad():
            for anchor, parameter in zip(self._anchor, self._model.parameters(), strict=True):
                anchor.copy_(parameter)
