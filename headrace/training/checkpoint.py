"""Checkpoints of models and optimizers: what a training script saves, and how it goes on after a restart.

Rank 0 writes; it copies the tensors first and does the rest in a thread, so that training goes on meanwhile. On a
restart rank 0 reads the latest whole checkpoint and broadcasts it: storage is asked once, and all workers start from
the same bytes.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from headrace.storage import StorageError, patiently
from headrace.training.checkpoint_folder import CheckpointFolder, Loaded
from headrace.training.environment import Environment
from headrace.training.errors import ConfigurationError
from headrace.training.process_group import Group, broadcast_bytes
from headrace.training.state import flatten, unflatten

logger = logging.getLogger(__name__)

TENSORS = "safetensors"
STATE = "json"
INTERRUPTED_INTERVAL = 5.0
"""Seconds of work that are worth a checkpoint when the worker is told to stop."""


class Stateful(Protocol):
    """A model, an optimizer, a scheduler: whatever has torch's two methods."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Checkpoints:
    """The checkpoints of the running job. Without storage nothing is saved and nothing is found.

    Args:
        folder: Where they are.
        environment: This worker.
        group: Its device.
        interrupted: Whether the worker was told to stop.
        on_restore: Called with the step that was restored, or None, when training begins.
    """

    def __init__(
        self,
        folder: CheckpointFolder | None,
        environment: Environment,
        group: Group,
        interrupted: Callable[[], bool],
        on_restore: Callable[[int | None], None],
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._group = group
        self._interrupted = interrupted
        self._on_restore = on_restore
        self._last = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="headrace-checkpoint")
        self._writing: Future[None] | None = None

    def restore(self, objects: Mapping[str, Stateful], fingerprint: str = "") -> dict[str, Any] | None:
        """Load the latest whole checkpoint into `objects`. Every worker must call it.

        Args:
            objects: What was given to `save`, by the same names.
            fingerprint: Of the configuration; a checkpoint with another one is not used.

        Returns:
            The `state` given to `save`, with its `step`; None where there is no checkpoint.

        Raises:
            ConfigurationError: the checkpoint does not fit the objects.
            StorageError: storage cannot be read.
        """
        if self._folder is not None:
            self._folder.owner = replace(self._folder.owner, fingerprint=fingerprint)
        loaded = self._read()
        if loaded is None:
            self._begin(None)
            return None
        state = self._apply(loaded, objects)
        self._begin(loaded.step)
        return state

    def due(self) -> bool:
        """Whether this worker should save now: on rank 0, when the interval has passed since the last time."""
        if self._folder is None or self._environment.rank != 0:
            return False
        if self._writing is not None and not self._writing.done():
            return False
        interval = self._environment.checkpoint_interval
        if self._interrupted():
            interval = min(interval, INTERRUPTED_INTERVAL)
        return time.monotonic() - self._last >= interval

    def save(self, step: int, objects: Mapping[str, Stateful], **state: Any) -> None:
        """Save `objects` and `state` as the checkpoint of `step`; returns when the tensors are copied.

        On other workers than rank 0, and without storage, it does nothing.

        Raises:
            TypeError: something is neither a tensor nor JSON.
            StorageError: the previous save failed in a way that will not pass by itself.
        """
        if self._folder is None or self._environment.rank != 0:
            return
        self.wait()
        tree, tensors = flatten(
            {
                "objects": {name: _unwrapped(item).state_dict() for name, item in objects.items()},
                "state": {**state, "step": step},
                "random": _random_state(self._group.device),
            }
        )
        copies = {name: _copied(tensor) for name, tensor in tensors.items()}
        self._last = time.monotonic()
        self._writing = self._writer.submit(self._write, self._folder, step, json.dumps(tree), copies)

    def wait(self) -> None:
        """Wait until what was saved is in storage.

        Raises:
            StorageError: it failed in a way that will not pass by itself; a store that does not answer is only logged.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except StorageError as error:
            if not error.retryable:
                raise
            logger.warning("a checkpoint could not be saved, training goes on without it: %s", error)

    def settle(self) -> None:
        """`wait` for a run that failed anyway: what goes wrong is logged."""
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001 - the run's own error is on its way
            logger.warning("the last checkpoint could not be saved: %s", error)

    @staticmethod
    def _write(folder: CheckpointFolder, step: int, tree: str, tensors: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        started = time.monotonic()
        files = {TENSORS: save(dict(tensors)), STATE: tree.encode()}
        folder.save(step, files)
        logger.info(
            "checkpoint of step %d saved: %d bytes in %.2f s",
            step,
            sum(map(len, files.values())),
            time.monotonic() - started,
        )

    def _read(self) -> Loaded | None:
        """The latest checkpoint, read by rank 0 and the same on all."""
        if self._environment.rank != 0:
            header = json.loads(broadcast_bytes(None, self._group.device))
            files = {name: broadcast_bytes(None, self._group.device) for name in header.get("files", [])}
            return Loaded(header["step"], files) if files else None
        loaded = patiently(self._folder.latest) if self._folder is not None else None
        header = {"step": loaded.step, "files": list(loaded.files)} if loaded else {}
        broadcast_bytes(json.dumps(header).encode(), self._group.device)
        for content in loaded.files.values() if loaded else ():
            broadcast_bytes(content, self._group.device)
        return loaded

    def _apply(self, loaded: Loaded, objects: Mapping[str, Stateful]) -> dict[str, Any]:
        from safetensors.torch import load

        saved = unflatten(json.loads(loaded.files[STATE]), load(loaded.files[TENSORS]))
        if set(saved["objects"]) != set(objects):
            raise self._misfit(loaded.step, f"it holds {', '.join(saved['objects'])}, the script {', '.join(objects)}")
        for name, item in objects.items():
            try:
                _unwrapped(item).load_state_dict(saved["objects"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise self._misfit(loaded.step, f"{name}: {' '.join(str(error).split())[:160]}") from error
        _restore_random(saved["random"], self._environment.rank, loaded.step, self._group.device)
        state: dict[str, Any] = saved["state"]
        return state

    def _misfit(self, step: int, found: str) -> ConfigurationError:
        return ConfigurationError(
            "storage.uri",
            f"the checkpoint of step {step} does not fit this run: {found}",
            "choose another folder, or delete the checkpoints in it",
        )

    def _begin(self, step: int | None) -> None:
        self._last = time.monotonic()
        self._on_restore(step)
        if step is not None and self._environment.rank == 0:
            logger.info("resumed from the checkpoint of step %d", step)


def _unwrapped(item: Any) -> Any:
    """The module inside of DistributedDataParallel, so that a checkpoint fits with and without it."""
    from torch.nn.parallel import DistributedDataParallel

    return item.module if isinstance(item, DistributedDataParallel) else item


def _copied(tensor: Any) -> Any:
    import torch

    if not isinstance(tensor, torch.Tensor):
        tensor = torch.as_tensor(tensor)
    return tensor.detach().to("cpu", copy=True).contiguous()


def _random_state(device: Any) -> dict[str, Any]:
    import torch

    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random(state: Mapping[str, Any], rank: int, step: int, device: Any) -> None:
    """Rank 0 goes on with its generators; the others get their own, for equal ones would draw equal dropout masks."""
    import torch

    if rank != 0:
        torch.manual_seed((step << 20) + rank)
        return
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
