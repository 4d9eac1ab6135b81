"""What a worker is told by its environment: torchrun's variables and Headrace's. All have defaults for one process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from headrace.api.meta import parse_duration
from headrace.api.schema import Model
from headrace.api.trainingjob import Checkpoint, Evaluation, Registry, Topology
from headrace.training.errors import ConfigurationError

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Environment:
    """One process of a run.

    Attributes:
        rank: RANK, 0 to world_size - 1.
        world_size: WORLD_SIZE, processes of the run.
        local_rank: LOCAL_RANK, this process among those of its pod.
        local_world_size: LOCAL_WORLD_SIZE, processes of its pod.
        master: (MASTER_ADDR, MASTER_PORT) of rank 0; None for a single process that nobody arranged.
        job: HEADRACE_JOB.
        run_id: HEADRACE_RUN_ID, differs between two jobs of the same name; empty outside Kubernetes.
        attempt: HEADRACE_ATTEMPT, 1 for the first start of the group.
        storage_uri: HEADRACE_STORAGE_URI, folder of the run; empty: nothing is stored.
        topology: HEADRACE_TOPOLOGY, the JSON of spec.topology: how the processes work together.
        place: HEADRACE_ZONE, the node's zone, or HEADRACE_NODE where zones are not known: who is near whom.
        checkpoint_interval: HEADRACE_CHECKPOINT_INTERVAL in seconds.
        checkpoint_keep: HEADRACE_CHECKPOINT_KEEP.
        evaluation: HEADRACE_EVALUATION, the JSON of spec.evaluation.
        registry: HEADRACE_REGISTRY, the JSON of spec.registry.
        metrics_port: HEADRACE_METRICS_PORT, of the worker's first process; 0: metrics are not served.
        checkpoint: HEADRACE_CHECKPOINT, the JSON of spec.checkpoint; its interval and keep are those above.
        collective_timeout: HEADRACE_COLLECTIVE_TIMEOUT in seconds: a collective that takes longer fails the attempt.
        rendezvous_timeout: HEADRACE_RENDEZVOUS_TIMEOUT in seconds: time for all workers to appear.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master: tuple[str, int] | None = None
    job: str = ""
    run_id: str = ""
    attempt: int = 1
    storage_uri: str = ""
    topology: Topology = field(default_factory=Topology)
    place: str = ""
    checkpoint_interval: float = 30.0
    checkpoint_keep: int = 2
    evaluation: Evaluation | None = None
    registry: Registry | None = None
    metrics_port: int = 0
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    collective_timeout: float = 300.0
    rendezvous_timeout: float = 600.0

    @classmethod
    def read(cls, variables: Mapping[str, str] | None = None) -> Environment:
        """The environment of this process, or of the given variables.

        Raises:
            ConfigurationError: a variable has a value that cannot be meant.
        """
        values = os.environ if variables is None else variables
        rank = _integer(values, "RANK", 0, 0)
        world_size = _integer(values, "WORLD_SIZE", 1, 1)
        if rank >= world_size:
            raise ConfigurationError("RANK", f"{rank} with WORLD_SIZE={world_size}", "ranks go from 0 to WORLD_SIZE-1")
        host = values.get("MASTER_ADDR", "")
        if world_size > 1 and not host:
            raise ConfigurationError(
                "MASTER_ADDR",
                f"not set, with WORLD_SIZE={world_size}",
                "set it to the host of rank 0, as torchrun does",
            )
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=_integer(values, "LOCAL_RANK", 0, 0),
            local_world_size=_integer(values, "LOCAL_WORLD_SIZE", 1, 1),
            master=(host, _integer(values, "MASTER_PORT", 29500, 1)) if host else None,
            job=values.get("HEADRACE_JOB", ""),
            run_id=values.get("HEADRACE_RUN_ID", ""),
            attempt=_integer(values, "HEADRACE_ATTEMPT", 1, 1),
            storage_uri=values.get("HEADRACE_STORAGE_URI", "").rstrip("/"),
            topology=_topology(values),
            place=values.get("HEADRACE_ZONE") or values.get("HEADRACE_NODE", ""),
            checkpoint_interval=_seconds(values, "HEADRACE_CHECKPOINT_INTERVAL", "30s"),
            checkpoint_keep=_integer(values, "HEADRACE_CHECKPOINT_KEEP", 2, 1),
            evaluation=_model(values, "HEADRACE_EVALUATION", Evaluation),
            registry=_model(values, "HEADRACE_REGISTRY", Registry),
            metrics_port=_integer(values, "HEADRACE_METRICS_PORT", 0, 0),
            checkpoint=_model(values, "HEADRACE_CHECKPOINT", Checkpoint) or Checkpoint(),
            collective_timeout=_seconds(values, "HEADRACE_COLLECTIVE_TIMEOUT", "5m"),
            rendezvous_timeout=_seconds(values, "HEADRACE_RENDEZVOUS_TIMEOUT", "10m"),
        )


def _topology(values: Mapping[str, str]) -> Topology:
    text = values.get("HEADRACE_TOPOLOGY", "")
    if not text:
        return Topology()
    try:
        return Topology.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"HEADRACE_TOPOLOGY {path}".rstrip(),
            f"{first.get('input')!r:.100}: {first['msg']}",
            "set it to the JSON of a TrainingJob's spec.topology, of the release that made the image",
        ) from error


def _model(values: Mapping[str, str], name: str, model: type[M]) -> M | None:
    text = values.get(name, "")
    if not text:
        return None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(
            f"{name} {'.'.join(map(str, first['loc']))}".rstrip(),
            f"{first.get('input')!r:.100}: {first['msg']}",
            "set it to the JSON that a TrainingJob has, of the release that made the image",
        ) from error


def _integer(values: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = values.get(name, "")
    if not text:
        return default
    try:
        number = int(text)
    except ValueError:
        raise ConfigurationError(name, f"{text!r} is no integer", "set a whole number") from None
    if number < least:
        raise ConfigurationError(name, f"{number}", f"the least value is {least}")
    return number


def _seconds(values: Mapping[str, str], name: str, default: str) -> float:
    try:
        return parse_duration(values.get(name) or default).total_seconds()
    except ValueError as error:
        raise ConfigurationError(name, str(error), "set a duration") from None
