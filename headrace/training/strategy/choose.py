"""From a TrainingJob's topology to a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.api.trainingjob import LocalSGD as LocalSGDSettings
from headrace.api.trainingjob import Topology
from headrace.training.errors import ConfigurationError
from headrace.training.process_group import Group
from headrace.training.strategy.all_reduce import AllReduce
from headrace.training.strategy.base import Loss, MakeOptimizer, Strategy
from headrace.training.strategy.local_sgd import LocalSGD
from headrace.training.strategy.pipeline import INTERLEAVED_STAGES, Pipeline
from headrace.training.strategy.sharded import Sharded, is_sharded


def strategy(
    layers: Sequence[Any],
    make_optimizer: MakeOptimizer,
    loss: Loss,
    topology: Topology,
    group: Group,
    rank: int,
    world_size: int,
    place: str,
    columns: int,
    batch_size: int,
) -> Strategy:
    """Prepare the model for training under `topology`. Collective.

    Args:
        layers: The model, a module per layer; every process builds all of them from the same seed.
        make_optimizer: Makes the optimizer of the parameters that this process trains.
        loss: Loss of the last layer's outputs.
        topology: What the job asks for.
        group: This process's device and backend.
        rank, world_size: This process among all.
        place: This process's zone, or its node where zones are not known.
        columns: Width of the input.
        batch_size: Rows of a batch over all processes.

    Raises:
        ConfigurationError: the topology does not fit the model or the number of processes.
    """
    from torch import nn

    if topology.type == "Pipeline":
        settings = topology.pipeline
        if settings is None:
            raise ConfigurationError("topology.pipeline", "not set", "say into how many stages the layers are cut")
        if world_size % settings.stages:
            raise ConfigurationError(
                "topology.pipeline.stages",
                f"{settings.stages}, with {world_size} processes",
                "each pipe has one process per stage: make the processes a multiple of the stages",
            )
        needed = settings.stages * (INTERLEAVED_STAGES if settings.schedule == "Interleaved1F1B" else 1)
        if len(layers) < needed:
            raise ConfigurationError(
                "topology.pipeline.stages",
                f"{settings.stages} with {settings.schedule} need {needed} layers, the model has {len(layers)}",
                "choose fewer stages, or add layers in hiddenSizes",
            )
        return Pipeline(layers, make_optimizer, loss, settings, group, rank, world_size, columns, batch_size)
    model = nn.Sequential(*[module for layer in layers for module in layer])
    if topology.type == "LocalSGD" and world_size > 1:
        chosen = topology.local_sgd or LocalSGDSettings()
        return LocalSGD(model, make_optimizer, loss, chosen, group, rank, world_size, place)
    if is_sharded(topology, world_size):
        return Sharded(model, make_optimizer, loss, topology, group, rank, world_size, place)
    return AllReduce(model, make_optimizer, loss, topology, group, rank, world_size, place)
