"""Checkpoints that are whole or do not exist.

One checkpoint is a folder `step-<n>/` with data files and, written last, `manifest.json`, which names each file with
its size and SHA-256. A folder without a manifest was never finished; a folder whose files do not match their manifest
is damaged. Both are passed over with a warning, and the one before them is used.

    checkpoints/step-120/attempt-2.safetensors    tensors
    checkpoints/step-120/attempt-2.json           everything else
    checkpoints/step-120/manifest.json            the commit

Data files carry the attempt that wrote them: a worker of an earlier attempt that is cut off from the cluster, but not
from storage, cannot damage the files of its successor.

This module moves bytes; `headrace.training.checkpoint` makes them from tensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.storage import NotFound, Store

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1
_FOLDER = re.compile(r"^step-(\d+)$")
_ATTEMPT = re.compile(r"attempt-([0-9]+)\.")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose checkpoints these are; those of another owner are not resumed from.

    Attributes:
        run_id: Identity of the run; an empty one matches every run.
        fingerprint: Of the configuration that the saved state belongs to; an empty one matches every configuration.
        attempt: Number of the attempt that writes.
    """

    run_id: str = ""
    fingerprint: str = ""
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint as it was read and verified: its step, and its files by the name they were saved under."""

    step: int
    files: dict[str, bytes]


class Damaged(Exception):
    """A checkpoint is not finished, or its bytes are not those that were written."""


@dataclass(slots=True)
class CheckpointFolder:
    """The checkpoints of one run.

    Attributes:
        store: The folder that holds them.
        owner: Whose they are.
        keep: How many finished ones are kept.
    """

    store: Store
    owner: Owner = field(default_factory=Owner)
    keep: int = 2

    def steps(self) -> list[int]:
        """Steps for which there is a folder, finished or not, latest first."""
        matches = (_FOLDER.match(entry.path) for entry in self.store.list() if entry.is_folder)
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def save(self, step: int, files: Mapping[str, bytes]) -> None:
        """Write a checkpoint and remove those that are no longer wanted.

        Args:
            step: Its number; a later checkpoint has a greater one.
            files: Contents by suffix, such as `safetensors` or `json`.

        Raises:
            StorageError: it could not be written; nothing that existed is harmed.
        """
        folder = f"step-{step}"
        listed: dict[str, dict[str, Any]] = {}
        for suffix, content in files.items():
            name = f"attempt-{self.owner.attempt}.{suffix}"
            self.store.write_bytes(f"{folder}/{name}", content)
            listed[suffix] = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {
            "format": FORMAT,
            "step": step,
            "runId": self.owner.run_id,
            "fingerprint": self.owner.fingerprint,
            "attempt": self.owner.attempt,
            "files": listed,
        }
        self.store.write_bytes(f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
        self._retire(step)

    def latest(self) -> Loaded | None:
        """The latest checkpoint that is whole and of this owner; None where there is none.

        Raises:
            StorageError: storage cannot be read (what is merely missing in a checkpoint is no error).
        """
        for step in self.steps():
            try:
                manifest = self._manifest(step)
                if not self._is_ours(manifest):
                    logger.warning(
                        "%s belongs to another run or configuration and is not used", self.store.uri_of(f"step-{step}")
                    )
                    continue
                return self._load(step, manifest)
            except Damaged as error:
                logger.warning(
                    "the checkpoint %s cannot be used and the one before is tried: %s",
                    self.store.uri_of(f"step-{step}"),
                    error,
                )
        return None

    def _manifest(self, step: int) -> dict[str, Any]:
        path = f"step-{step}/{MANIFEST}"
        try:
            manifest = json.loads(self.store.read_bytes(path))
        except NotFound:
            raise Damaged("it has no manifest, so it was not finished") from None
        except ValueError as error:
            raise Damaged(f"its manifest is no JSON: {error}") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("step") != step:
            raise Damaged(f"its manifest is not of format {FORMAT} and step {step}")
        return manifest

    def _load(self, step: int, manifest: Mapping[str, Any]) -> Loaded:
        files: dict[str, bytes] = {}
        for suffix, expected in manifest["files"].items():
            try:
                content = self.store.read_bytes(f"step-{step}/{expected['name']}")
            except NotFound:
                raise Damaged(f"its file {expected['name']} is missing") from None
            if hashlib.sha256(content).hexdigest() != expected["sha256"]:
                raise Damaged(
                    f"its file {expected['name']} has {len(content)} of {expected['size']} bytes and not the SHA-256 "
                    "that was written"
                )
            files[suffix] = content
        return Loaded(step, files)

    def _is_ours(self, manifest: Mapping[str, Any]) -> bool:
        pairs = ((self.owner.run_id, manifest.get("runId")), (self.owner.fingerprint, manifest.get("fingerprint")))
        return all(not ours or not theirs or ours == theirs for ours, theirs in pairs)

    def _retire(self, newest: int) -> None:
        """Remove all but the last `keep`; unfinished and foreign ones do not count and go too."""
        kept = 0
        for step in self.steps():
            if step == newest:
                kept += 1
                continue
            try:
                manifest = self._manifest(step)
                if self._is_ours(manifest) and int(manifest["attempt"]) > self.owner.attempt:
                    return  # A later attempt has taken over: its checkpoints are not ours to remove.
                wanted = step < newest and kept < self.keep and self._is_ours(manifest)
            except Damaged:
                if self._is_being_written_by_a_successor(step):
                    return
                wanted = False
            if wanted:
                kept += 1
                continue
            # The manifest first: from here on nobody takes the folder for a checkpoint.
            self.store.delete(f"step-{step}/{MANIFEST}")
            self.store.delete(f"step-{step}")

    def _is_being_written_by_a_successor(self, step: int) -> bool:
        names = (_ATTEMPT.search(entry.path) for entry in self.store.list(f"step-{step}"))
        return any(int(name[1]) > self.owner.attempt for name in names if name)
