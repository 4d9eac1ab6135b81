"""A server's shard in storage: whole or not there, and of one process at a time.

Server i of a run writes to `servers/<i>/` in the folder of the run, in the format of `checkpoint_folder`: safetensors
and JSON under a manifest with checksums. Each start of a server counts as an attempt of its own, so one that is cut off
cannot harm what its successor writes.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from typing import Any

from headrace.storage import Store, patiently
from headrace.training.checkpoint_folder import CheckpointFolder, Owner

logger = logging.getLogger(__name__)

TENSORS = "safetensors"
STATE = "json"


class ShardCheckpoints:
    """The checkpoints of one server.

    Args:
        storage: Folder of the run.
        index: Number of the server.
        run_id: Identity of the run.
        fingerprint: Of the model, how it is cut, and the worker's settings.
        keep: Checkpoints kept.
    """

    def __init__(self, storage: Store, index: int, run_id: str, fingerprint: str, keep: int) -> None:
        self._folder = CheckpointFolder(storage.folder(f"servers/{index}"), Owner(run_id, fingerprint), keep)
        self._number = 0

    def load(self) -> tuple[Any, dict[str, Any]] | None:
        """The latest snapshot as JSON and tensors, or None.

        Raises:
            StorageError: storage cannot be read.
        """
        from safetensors.torch import load

        loaded = patiently(self._folder.latest)
        if loaded is None:
            return None
        state = json.loads(loaded.files[STATE])
        self._number = loaded.step
        self._folder.owner = replace(self._folder.owner, attempt=int(state["start"]) + 1)
        return state["shard"], load(loaded.files[TENSORS])

    def save(self, tree: Any, tensors: dict[str, Any]) -> None:
        """Write a snapshot.

        Raises:
            StorageError: it could not be written; what was there is as it was.
        """
        from safetensors.torch import save

        began = time.monotonic()
        self._number += 1
        state = json.dumps({"start": self._folder.owner.attempt, "shard": tree})
        files = {TENSORS: save(tensors), STATE: state.encode()}
        self._folder.save(self._number, files)
        size = sum(map(len, files.values()))
        logger.info("version %s saved: %d bytes in %.2f s", tree["version"], size, time.monotonic() - began)
