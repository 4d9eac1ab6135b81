"""Pipeline parallelism: the layers are spread over processes, and parts of a batch flow through them one after another.

    rank 0  layers 0-3   |F0 F1 F2 F3 .  .  B0 B1 B2 B3
    rank 1  layers 4-7   |   F0 F1 F2 F3 B0 B1 B2 B3

A process waits while the pipe fills and drains: with p stages and m microbatches (p-1)/(m+p-1) of the time under GPipe
(Huang et al. 2019) and 1F1B (Narayanan et al. 2019), which keeps p instead of m microbatches in memory; interleaving
two stages per process halves the wait (Narayanan et al. 2021). The schedules are torch.distributed.pipelining's. A run
with more processes than stages has several pipes, whose stages sum their gradients with each other.

The layers are cut where a profile taken at the start says that the slowest stage is fastest. Checkpoints hold all
layers by number, so a run may go on with another cut, or another number of stages.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headrace.api.trainingjob import Pipeline as Settings
from headrace.training.process_group import Group
from headrace.training.strategy.base import IGNORED, Loss, MakeOptimizer
from headrace.training.strategy.split import balanced, profile
from headrace.training.strategy.waiting import for_every_message

logger = logging.getLogger(__name__)

INTERLEAVED_STAGES = 2
"""Stages of each process under Interleaved1F1B."""


class Pipeline:
    """One process of one pipe: `rank = replica * stages + stage`.

    Args:
        layers: The whole model, a layer per item; every process builds all of them from the same seed.
        make_optimizer: Makes the optimizer of this process's layers.
        loss: Loss of the last layer's outputs.
        settings: Stages, microbatches and schedule.
        group: This process's device.
        rank, world_size: This process among all; world_size is a multiple of the stages.
        columns: Width of the input.
        batch_size: Rows of a batch over all pipes.
    """

    gathers = True

    def __init__(
        self,
        layers: Sequence[Any],
        make_optimizer: MakeOptimizer,
        loss: Loss,
        settings: Settings,
        group: Group,
        rank: int,
        world_size: int,
        columns: int,
        batch_size: int,
    ) -> None:
        import torch

        stages = settings.stages
        replicas = world_size // stages
        self._stage, self._stages = rank % stages, stages
        self.part = (rank // stages, replicas)
        self.counts = self._stage == stages - 1
        self._layers, self._loss, self._device, self._rank = list(layers), loss, group.device, rank
        self._microbatches = settings.microbatches
        rows = -(-batch_size // replicas)
        self._rows = -(-rows // self._microbatches)
        self._batch_rows = 1
        example = torch.zeros(self._rows, columns, device=group.device)
        pipes, self._peers = _process_groups(rank, stages, replicas)
        virtual = stages * (INTERLEAVED_STAGES if settings.schedule == "Interleaved1F1B" else 1)
        self._cut = self._balance(example, virtual)
        self._mine = [index for index in range(virtual) if index % stages == self._stage]
        self._optimizer = make_optimizer([item for index in self._mine for item in self._parameters(self._cut[index])])
        self._schedule = self._make_schedule(settings, example, virtual, pipes)
        self._state = _WholeState(self._layers, self._optimizer, self._named)

    def step(self, features: Any, labels: Any, rows: int) -> Any:
        import torch
        import torch.distributed as dist

        self._optimizer.zero_grad(set_to_none=False)
        self._batch_rows = rows
        whole = self._rows * self._microbatches
        losses: list[Any] = []
        inputs: tuple[Any, ...] = ()
        if self._stage == 0:
            inputs = (torch.cat([features, features.new_zeros(whole - len(features), features.shape[1])]),)
        with for_every_message():
            if self.counts:
                target = torch.cat([labels, labels.new_full((whole - len(labels),), IGNORED)])
                self._schedule.step(*inputs, target=target, losses=losses)
            else:
                self._schedule.step(*inputs)
        if self._peers is not None:
            gradients = [parameter.grad for parameter in self._own_parameters()]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat, group=self._peers)
            start = 0
            for gradient in gradients:
                gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()
        self._optimizer.step()
        if not losses:
            return torch.zeros((), device=self._device)
        return torch.stack([loss.detach() for loss in losses]).sum() * rows

    def may_save(self) -> bool:
        return True

    def gather(self) -> None:
        """Every stage hands its layers and their optimizer state to all: a process then holds the whole state."""
        self._state.collect(self._owner)

    def objects(self) -> dict[str, Any]:
        return {"pipeline": self._state}

    def restored(self) -> None:
        self._state.apply()

    def finish(self) -> Any:
        from torch import nn

        self.gather()
        return nn.Sequential(*[module for layer in self._layers for module in layer])

    @property
    def cut(self) -> tuple[range, ...]:
        """Layers of each stage; under Interleaved1F1B stage i is on process i mod p."""
        return self._cut

    def _owner(self, layer: int) -> int:
        """The rank in the first pipe that trains a layer."""
        return next(index % self._stages for index, stage in enumerate(self._cut) if layer in stage)

    def _named(self) -> Iterator[tuple[str, Any]]:
        for index in self._mine:
            for layer in self._cut[index]:
                for name, parameter in self._layers[layer].named_parameters():
                    yield f"{layer}.{name}", parameter

    def _own_parameters(self) -> Iterator[Any]:
        return (parameter for _, parameter in self._named())

    def _parameters(self, layers: range) -> list[Any]:
        return [parameter for layer in layers for parameter in self._layers[layer].parameters()]

    def _balance(self, example: Any, stages: int) -> tuple[range, ...]:
        """The same cut everywhere: as rank 0 measured it."""
        import torch
        import torch.distributed as dist

        costs = torch.zeros(len(self._layers), dtype=torch.float64, device=self._device)
        if self._rank == 0:
            costs.copy_(torch.tensor(profile(self._layers, example), dtype=torch.float64))
        dist.broadcast(costs, src=0)
        cut = balanced(costs.tolist(), stages)
        if self._rank == 0:
            shares = [sum(costs[layer].item() for layer in stage) / costs.sum().item() for stage in cut]
            text = ", ".join(
                f"layers {s.start}-{s.stop - 1} ({share:.0%})" for s, share in zip(cut, shares, strict=True)
            )
            logger.info("pipeline of %d stages: %s of the profiled time", stages, text)
        return cut

    def _make_schedule(self, settings: Settings, example: Any, virtual: int, pipe: Any) -> Any:
        import torch
        from torch import nn
        from torch.distributed import pipelining

        stages: list[Any] = []
        for index in self._mine:
            width = _width(self._layers, self._cut[index].start, example.shape[1])
            entering = torch.zeros(self._rows, width, device=self._device)
            module = nn.Sequential(*[m for layer in self._cut[index] for m in self._layers[layer]])
            with torch.no_grad():
                leaving = module(entering)
            stages.append(
                pipelining.PipelineStage(
                    module, index, virtual, self._device, input_args=(entering,), output_args=(leaving,), group=pipe
                )
            )

        def scaled(outputs: Any, labels: Any) -> Any:
            return self._loss(outputs, labels) / self._batch_rows

        kind = getattr(pipelining, f"Schedule{settings.schedule}")
        options: dict[str, Any] = {"loss_fn": scaled}
        # The loss is already that of the whole batch's mean; newer PyTorch would divide by the microbatches too.
        if "scale_grads" in inspect.signature(kind).parameters:
            options["scale_grads"] = False
        return kind(stages if settings.schedule == "Interleaved1F1B" else stages[0], self._microbatches, **options)


class _WholeState:
    """All layers and their optimizer state under the layers' numbers, with torch's two methods for a checkpoint."""

    def __init__(self, layers: Sequence[Any], optimizer: Any, named: Any) -> None:
        self._layers, self._optimizer, self._named = layers, optimizer, named
        self._whole: dict[str, dict[str, Any]] = {}

    def collect(self, owner: Any) -> None:
        """Bring every layer's parameters and optimizer state to every process. Collective."""
        import torch
        import torch.distributed as dist

        rank = dist.get_rank()
        mine = dict(self._named())
        self._whole = {}
        for layer, modules in enumerate(self._layers):
            source = owner(layer)
            for name, parameter in modules.named_parameters():
                key = f"{layer}.{name}"
                state = self._optimizer.state.get(mine[key], {}) if key in mine else {}
                kinds = _spread(sorted(state) if rank == source else [], source, parameter.device)
                values = {"parameter": parameter.data}
                for kind in kinds:
                    known = state.get(kind)
                    whole = known if isinstance(known, torch.Tensor) else None
                    scalar = kind == "step"
                    values[kind] = (
                        whole.to(parameter.device, torch.float32)
                        if whole is not None and key in mine
                        else torch.zeros(() if scalar else parameter.shape, device=parameter.device)
                    )
                for value in values.values():
                    dist.broadcast(value, src=source)
                self._whole[key] = values

    def state_dict(self) -> dict[str, Any]:
        return {key: dict(values) for key, values in self._whole.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        expected = {
            f"{layer}.{name}": tuple(parameter.shape)
            for layer, modules in enumerate(self._layers)
            for name, parameter in modules.named_parameters()
        }
        found = {key: tuple(values["parameter"].shape) for key, values in state_dict.items()}
        if expected != found:
            wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
            raise RuntimeError(f"layers differ in {', '.join(wrong[:5])}")
        self._whole = {key: dict(values) for key, values in state_dict.items()}

    def apply(self) -> None:
        """Take over what was loaded, as far as it is this process's."""
        import torch

        if not self._whole:
            return
        with torch.no_grad():
            for layer, modules in enumerate(self._layers):
                for name, parameter in modules.named_parameters():
                    parameter.copy_(self._whole[f"{layer}.{name}"]["parameter"])
        for key, parameter in self._named():
            values = {kind: value for kind, value in self._whole[key].items() if kind != "parameter"}
            if values:
                self._optimizer.state[parameter] = {
                    kind: value.clone().to("cpu" if kind == "step" else parameter.device)
                    for kind, value in values.items()
                }


KINDS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "step")
"""Optimizer state that is handed over: of Adam and of SGD with momentum."""


def _spread(kinds: Sequence[str], source: int, device: Any) -> list[str]:
    import torch
    import torch.distributed as dist

    flags = torch.tensor([int(kind in kinds) for kind in KINDS], device=device)
    dist.broadcast(flags, src=source)
    return [kind for kind, flag in zip(KINDS, flags.tolist(), strict=True) if flag]


def _process_groups(rank: int, stages: int, replicas: int) -> tuple[Any, Any]:
    """This process's pipe, and its peers: the same stage in other pipes (None with one pipe)."""
    import torch.distributed as dist

    pipe = peers = None
    for replica in range(replicas):
        made = dist.new_group([replica * stages + stage for stage in range(stages)])
        if rank // stages == replica:
            pipe = made
    if replicas > 1:
        for stage in range(stages):
            made = dist.new_group([replica * stages + stage for replica in range(replicas)])
            if rank % stages == stage:
                peers = made
    return pipe, peers


def _width(layers: Sequence[Any], layer: int, columns: int) -> int:
    """Width of what enters a layer."""
    return columns if layer == 0 else int(layers[layer][0].in_features)
