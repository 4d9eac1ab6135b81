"""Checkpoints of models and optimizers: what a training script saves, and how it goes on after a restart.

Saving copies the tensors and does the rest in a thread, so that training goes on meanwhile. Worker 0 writes what all
have alike (or all write an equal part of it), each worker writes its shards of what is spread over them and its random
generators, and worker 0 commits when everything is there. On a restart the workers read the files between them and hand
them on: storage is asked once for each, and all start from the same bytes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from headrace.storage import StorageError, patiently
from headrace.training.checkpoint_folder import CheckpointFolder, Damaged
from headrace.training.checkpoint_schedule import Schedule
from headrace.training.environment import Environment
from headrace.training.errors import ConfigurationError
from headrace.training.process_group import Group, broadcast_bytes, greatest
from headrace.training.random_state import fresh_random, random_state, restore_random
from headrace.training.shards import (
    Piece,
    Region,
    assemble,
    is_spread,
    is_written_here,
    local_region,
    overlapping,
    spread_like,
    template_of,
    templates,
    whole_shape,
)
from headrace.training.state import flatten, unflatten

logger = logging.getLogger(__name__)

TENSORS = "safetensors"
STATE = "json"
_SHARD = "shard-"


class Stateful(Protocol):
    """A model, an optimizer, a scheduler: whatever has torch's two methods."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass(slots=True)
class Saved:
    """What happened to checkpoints in this session.

    Attributes:
        step: Of the last one that is whole in storage.
        size: Its bytes, of all workers.
        seconds: From the call of `save` until it was whole.
        pause: Seconds for which `save` held training up, the last time.
        paused: Seconds for which it did in all.
        problem: (reason, message) while the last save failed.
        passed_over: What was damaged and not used, in words.
    """

    step: int | None = None
    size: int = 0
    seconds: float = 0.0
    pause: float = 0.0
    paused: float = 0.0
    problem: tuple[str, str] | None = None
    passed_over: str = ""


class Checkpoints:
    """The checkpoints of the running job. Without storage nothing is saved and nothing is found.

    Args:
        folder: Where they are.
        environment: This worker.
        group: Its device.
        interrupted: Whether the worker was told to stop.
        on_restore: Called when training begins, with the step and the useful seconds that were restored, or None.
        useful: Seconds of steps that count so far; they are saved too.

    Attributes:
        saved: What happened to checkpoints so far.
        objects: What was last given to `restore` or `save`.
    """

    def __init__(
        self,
        folder: CheckpointFolder | None,
        environment: Environment,
        group: Group,
        interrupted: Callable[[], bool],
        on_restore: Callable[[int | None, float | None], None],
        useful: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._group = group
        self._on_restore = on_restore
        self._useful = useful
        alone = environment.world_size == 1
        self._schedule = Schedule(
            environment.rank,
            environment.checkpoint_interval,
            interrupted,
            None if alone else lambda values: greatest(values, group.device),
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="headrace-checkpoint")
        self._writing: Future[None] | None = None
        self._pinned: dict[str, Any] = {}
        self.saved = Saved()
        self.objects: Mapping[str, Stateful] = {}

    def restore(
        self, objects: Mapping[str, Stateful], fingerprint: str = "", best: bool = False
    ) -> dict[str, Any] | None:
        """Load the latest whole checkpoint into `objects`. Every worker must call it.

        Args:
            objects: What was given to `save`, by the same names.
            fingerprint: Of the configuration; a checkpoint with another one is not used.
            best: The checkpoint with the best value of checkpoint.best rather than the latest.

        Returns:
            The `state` given to `save`, with its `step`; None where there is no checkpoint.

        Raises:
            ConfigurationError: the checkpoint does not fit the objects.
            StorageError: storage cannot be read.
        """
        self.objects = objects
        if self._folder is not None:
            self._folder.owner = replace(self._folder.owner, fingerprint=fingerprint)
        known = _templates(objects)
        read = self._read(known)
        step = state = useful = None
        while (found := read.next(best)) is not None:
            step, tree, tensors, generators = found
            state = self._apply(step, unflatten(tree, tensors), objects)
            useful = float(tree.get("usefulSeconds", 0.0))
            mine = generators.get("random") if generators else None
            if mine is not None:
                restore_random(mine, self._group.device)
            else:
                fresh_random(self._environment.rank, step)
            break
        if self._folder is not None and self._folder.passed_over:
            self.saved.passed_over = "; ".join(self._folder.passed_over)
        self._schedule.begin()
        self._on_restore(step, useful)
        if step is not None and self._environment.rank == 0:
            logger.info("resumed from the checkpoint of step %d", step)
        return state

    def due(self) -> bool:
        """Whether to save now: when the interval has passed. The same on all workers; each must call it at each step.

        Raises:
            RuntimeError: another worker is gone.
        """
        if self._folder is None:
            return False
        return self._schedule.due(self._writing is not None and not self._writing.done())

    @property
    def may_leave(self) -> bool:
        """Whether a worker that was told to stop has nothing more to save."""
        return self._folder is None or self._schedule.may_leave()

    def save(
        self, step: int, objects: Mapping[str, Stateful], metrics: Mapping[str, float] | None = None, **state: Any
    ) -> None:
        """Save `objects` and `state` as the checkpoint of `step`; returns when the tensors are copied.

        Every worker must call it at the same step. Without storage it does nothing.

        Args:
            step: Number of the checkpoint; a later one has a greater number.
            objects: What to save, by name.
            metrics: Numbers that checkpoint.best may go by.
            **state: Anything that JSON can hold.

        Raises:
            TypeError: something is neither a tensor nor JSON.
            StorageError: the previous save failed in a way that will not pass by itself.
        """
        if self._folder is None:
            return
        started = time.monotonic()
        self.objects = objects
        self.wait()
        tree, tensors = flatten(
            {
                "objects": {name: _unwrapped(item).state_dict() for name, item in objects.items()},
                "state": {**state, "step": step},
                "usefulSeconds": self._useful(),
            }
        )
        part = self._copies(tree, tensors)
        self._schedule.begin()
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        self._writing = self._writer.submit(self._write, self._folder, step, part, numbers, started)
        self.saved.pause = time.monotonic() - started
        self.saved.paused += self.saved.pause

    def wait(self) -> None:
        """Wait until what was saved is in storage.

        Raises:
            StorageError: it failed in a way that will not pass by itself; a store that does not answer, or is full, is
                only logged.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except StorageError as error:
            if not error.retryable:
                raise

    def settle(self) -> None:
        """`wait` for a run that failed anyway: not long for workers that may be gone, and what goes wrong is logged."""
        if self._folder is not None:
            self._folder.failed.set()
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001 - the run's own error is on its way
            logger.warning("the last checkpoint could not be saved: %s", error)

    def _copies(self, tree: Any, tensors: Mapping[str, Any]) -> _Part:
        """What this worker writes, in memory of its own."""
        rank, count = self._environment.rank, self._environment.world_size
        split = count > 1 and self._environment.checkpoint.writers == "AllRanks"
        shared = {name: tensor for name, tensor in tensors.items() if not is_spread(tensor)}
        mine = _portion(shared, rank, count) if split else list(shared) if rank == 0 else []
        part = _Part(random=random_state(self._group.device), suffix=f"{TENSORS}-{rank}" if split else TENSORS)
        if rank == 0:
            part.tree = json.dumps(tree)
        copies = {name: shared[name] for name in mine}
        suffix = f"{_SHARD}{rank}.{TENSORS}"
        for name, tensor in tensors.items():
            if is_spread(tensor) and is_written_here(tensor):
                offset, shape = local_region(tensor)
                if 0 not in shape:
                    copies[name] = tensor.to_local()
                    part.pieces[name] = (suffix, offset, shape)
        copied = _copied(copies, self._pinned)
        part.shared = {name: copied[name] for name in mine}
        part.shards = {name: copied[name] for name in part.pieces}
        return part

    def _write(
        self, folder: CheckpointFolder, step: int, part: _Part, metrics: Mapping[str, float], started: float
    ) -> None:
        """In the writer's thread: this worker's files, and on worker 0 the commit."""
        from safetensors.torch import save

        rank, count = self._environment.rank, self._environment.world_size
        files: dict[str, bytes] = {}
        if part.tree is not None:
            files[STATE] = part.tree.encode()
        if part.shared:
            files[part.suffix] = save(dict(part.shared))
        if part.shards:
            files[f"{_SHARD}{rank}.{TENSORS}"] = save(dict(part.shards))
        try:
            folder.write_part(step, rank, files, {"pieces": part.pieces, "random": part.random})
            if rank != 0:
                return
            manifest = folder.commit(step, count, metrics)
        except StorageError as error:
            self.saved.problem = (type(error).__name__, str(error))
            logger.warning("a checkpoint could not be saved, training goes on without it: %s", error)
            raise
        self.saved.problem = None
        self.saved.step = step
        self.saved.size = sum(entry["size"] for entry in manifest["files"].values())
        self.saved.seconds = time.monotonic() - started
        logger.info("checkpoint of step %d saved: %d bytes in %.2f s", step, self.saved.size, self.saved.seconds)

    def _read(self, known: Mapping[str, Any]) -> _Reading:
        return _Reading(self._folder, self._environment.rank, self._environment.world_size, self._group.device, known)

    def _apply(self, step: int, saved: Mapping[str, Any], objects: Mapping[str, Stateful]) -> dict[str, Any]:
        if set(saved["objects"]) != set(objects):
            raise _misfit(step, f"it holds {', '.join(saved['objects'])}, the script {', '.join(objects)}")
        for name, item in objects.items():
            try:
                _unwrapped(item).load_state_dict(saved["objects"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise _misfit(step, f"{name}: {' '.join(str(error).split())[:160]}") from error
        state: dict[str, Any] = saved["state"]
        return state


@dataclass(slots=True)
class _Part:
    """What one worker writes of a checkpoint: the JSON of everything (worker 0), tensors, shards and where they are."""

    random: dict[str, Any]
    suffix: str
    tree: str | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    shards: dict[str, Any] = field(default_factory=dict)
    pieces: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)


Found = tuple[int, Any, dict[str, Any], dict[str, Any] | None]
"""Step, JSON tree, tensors by name, and this worker's part (None where the run has another number of workers)."""


class _Reading:
    """Finds the latest whole checkpoint, all workers together: where one meets damage, all go on to the one before.

    Args:
        folder: Where checkpoints are.
        rank: This worker.
        count: Workers.
        device: The process's device.
        known: How tensors are to be spread, see `shards.templates`.
    """

    def __init__(
        self, folder: CheckpointFolder | None, rank: int, count: int, device: Any, known: Mapping[str, Any]
    ) -> None:
        self._folder = folder
        self._rank, self._count, self._device, self._known = rank, count, device, known

    def next(self, best: bool) -> Found | None:
        """The first checkpoint that is whole, or None."""
        if self._folder is None:
            return None
        folder = self._folder
        manifests = iter(patiently(lambda: list(folder.candidates(best)))) if self._rank == 0 else iter(())
        while True:
            header = next(manifests, None)
            told = json.dumps(header).encode() if self._rank == 0 else None
            manifest = json.loads(broadcast_bytes(told, self._device))
            if manifest is None:
                return None
            found = self._fetch(folder, manifest)
            if found is not None:
                return found

    def _fetch(self, folder: CheckpointFolder, manifest: Mapping[str, Any]) -> Found | None:
        step, files = manifest["step"], manifest["files"]
        shared = sorted(suffix for suffix in files if not suffix.startswith(_SHARD))
        mine = [suffix for index, suffix in enumerate(shared) if index % self._count == self._rank]
        pieces = {name: [Piece.of(entry) for entry in entries] for name, entries in manifest["pieces"].items()}
        regions = {name: self._region(name, found) for name, found in pieces.items()}
        mine += sorted({p.file for name, found in pieces.items() for p in overlapping(found, regions[name])})
        contents: dict[str, bytes] = {}
        part: dict[str, Any] | None = None
        trouble: Exception | None = None
        try:
            for suffix in mine:
                contents[suffix] = self._verified(folder, step, files[suffix])
            if manifest["workers"] == self._count:
                part = json.loads(self._verified(folder, step, manifest["parts"][self._rank]))
        except (Damaged, StorageError) as error:
            trouble = error
        damaged, failed = greatest([isinstance(trouble, Damaged), isinstance(trouble, StorageError)], self._device)
        if isinstance(trouble, StorageError):
            raise trouble
        if failed:
            raise RuntimeError(f"another worker could not read the checkpoint of step {step}; see its log")
        if damaged:
            found_here = (
                trouble
                if isinstance(trouble, Damaged)
                else Damaged("another worker found a file of it damaged, see its log")
            )
            folder.pass_over(step, found_here)
            return None
        for index, suffix in enumerate(shared):
            contents[suffix] = broadcast_bytes(contents.get(suffix), self._device, index % self._count)
        return self._put_together(step, contents, pieces, regions, part)

    def _put_together(
        self,
        step: int,
        contents: Mapping[str, bytes],
        pieces: Mapping[str, list[Piece]],
        regions: Mapping[str, Region],
        part: dict[str, Any] | None,
    ) -> Found:
        from safetensors.torch import load

        tensors: dict[str, Any] = {}
        loaded: dict[str, Any] = {}
        for suffix, content in contents.items():
            if suffix.startswith(_SHARD):
                loaded[suffix] = load(content)
            elif suffix != STATE:
                tensors |= load(content)
        for name, tensor in tensors.items():
            template = template_of(name, tuple(tensor.shape), self._known)
            if template is not None:
                tensors[name] = spread_like(template, _cut(tensor, local_region(template)))
        for name, found in pieces.items():
            local = assemble(found, regions[name], partial(_piece, loaded, name))
            template = template_of(name, whole_shape(found), self._known)
            tensors[name] = local if template is None else spread_like(template, local)
        return step, json.loads(contents[STATE]), tensors, part

    def _region(self, name: str, pieces: list[Piece]) -> Region:
        shape = whole_shape(pieces)
        template = template_of(name, shape, self._known)
        return ((0,) * len(shape), shape) if template is None else local_region(template)

    @staticmethod
    def _verified(folder: CheckpointFolder, step: int, entry: Mapping[str, Any]) -> bytes:
        return patiently(lambda: folder.read(step, entry))


def _piece(loaded: Mapping[str, Mapping[str, Any]], name: str, piece: Piece) -> Any:
    return loaded[piece.file][name]


def _cut(tensor: Any, region: Region) -> Any:
    offset, shape = region
    return tensor[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))].clone()


def _misfit(step: int, found: str) -> ConfigurationError:
    return ConfigurationError(
        "storage.uri",
        f"the checkpoint of step {step} does not fit this run: {found}",
        "choose another folder, or delete the checkpoints in it",
    )


def _templates(objects: Mapping[str, Stateful]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in objects.items():
        inner = _unwrapped(item)
        _, tensors = flatten({"objects": {name: inner.state_dict()}})
        found |= templates(name, inner, tensors)
    return found


def _unwrapped(item: Any) -> Any:
    """The module inside of DistributedDataParallel, so that a checkpoint fits with and without it."""
    from torch.nn.parallel import DistributedDataParallel

    return item.module if isinstance(item, DistributedDataParallel) else item


def _portion(tensors: Mapping[str, Any], rank: int, count: int) -> list[str]:
    """Names of the tensors that a worker writes: the largest first, each to the worker that has least so far."""
    loads = [0] * count
    mine: list[str] = []
    for name in sorted(tensors, key=lambda name: (-tensors[name].numel() * tensors[name].element_size(), name)):
        owner = loads.index(min(loads))
        loads[owner] += tensors[name].numel() * tensors[name].element_size()
        if owner == rank:
            mine.append(name)
    return mine


def _copied(tensors: Mapping[str, Any], pinned: dict[str, Any]) -> dict[str, Any]:
    """Copies in main memory. Those from a GPU go to pinned memory that is used again, several times as fast."""
    import torch

    copies: dict[str, Any] = {}
    waiting = False
    for name, given in tensors.items():
        tensor = (given if isinstance(given, torch.Tensor) else torch.as_tensor(given)).detach()
        if tensor.device.type != "cuda":
            copies[name] = tensor.to("cpu", copy=True).contiguous()
            continue
        buffer = pinned.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = pinned[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        buffer.copy_(tensor, non_blocking=True)
        copies[name], waiting = buffer, True
    if waiting:
        torch.cuda.current_stream().synchronize()
    return copies
