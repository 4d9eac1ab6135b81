"""Checkpoints that are whole or do not exist.

One checkpoint is a folder `step-<n>/` with data files and, written last, `manifest.json`, which names each file with
its size and SHA-256. A folder without a manifest was never finished; a folder whose files do not match their manifest
is damaged. Both are passed over with a warning, and the one before them is used.

    checkpoints/step-120/attempt-2-9f3a.safetensors           tensors that all workers have alike
    checkpoints/step-120/attempt-2-9f3a.json                  everything else
    checkpoints/step-120/attempt-2-9f3a.shard-1.safetensors   worker 1's shards of what is spread over workers
    checkpoints/step-120/attempt-2-9f3a.part-1.json           what worker 1 wrote, and its random generators
    checkpoints/step-120/manifest.json                        the commit

Each worker writes its files and, after them, its part; worker 0 waits for all parts and commits. Data files carry the
attempt and the session that wrote them: a worker that is cut off from the cluster, but not from storage, cannot damage
the files of its successor.

This module moves bytes; `headrace.training.checkpoint` makes them from tensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from headrace.api.trainingjob import Best
from headrace.storage import NotFound, StorageError, Store

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 2
PART_TIMEOUT = 60.0
"""Seconds that worker 0 waits for the others' parts after its own is written."""
PART_TIMEOUT_OF_FAILED = 3.0
"""The same once the run has failed: the worker whose part is missing is then most likely the one that is gone."""
_POLL = (0.02, 0.5)
"""Seconds between two looks for parts: at first, and at most."""
_READERS = 16
_FOLDER = re.compile(r"^step-(\d+)$")
_ATTEMPT = re.compile(r"attempt-([0-9]+)[.-]")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose checkpoints these are; those of another owner are not resumed from.

    Attributes:
        run_id: Identity of the run; an empty one matches every run.
        fingerprint: Of the configuration that the saved state belongs to; an empty one matches every configuration.
        attempt: Number of the attempt that writes.
        session: Differs between two sessions of one attempt; the same on all workers.
    """

    run_id: str = ""
    fingerprint: str = ""
    attempt: int = 1
    session: str = ""

    def file(self, suffix: str) -> str:
        """Name of a data file."""
        return f"attempt-{self.attempt}{f'-{self.session}' if self.session else ''}.{suffix}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint as it was read and verified: its step, and its files by the name they were saved under."""

    step: int
    files: dict[str, bytes]


class Damaged(Exception):
    """A checkpoint is not finished, or its bytes are not those that were written."""


class PartMissing(StorageError):
    """Another worker did not write its part in time."""

    retryable = True


@dataclass(slots=True)
class CheckpointFolder:
    """The checkpoints of one run.

    Attributes:
        store: The folder that holds them.
        owner: Whose they are.
        keep: How many finished ones are kept.
        best: The metric by which one more is kept.
        passed_over: Why checkpoints were not used, in words, as they were met.
        failed: Set when the run has failed, so that the parts of workers that are gone are not waited for in full.
    """

    store: Store
    owner: Owner = field(default_factory=Owner)
    keep: int = 2
    best: Best | None = None
    passed_over: list[str] = field(default_factory=list)
    failed: threading.Event = field(default_factory=threading.Event)

    def steps(self) -> list[int]:
        """Steps for which there is a folder, finished or not, latest first."""
        matches = (_FOLDER.match(entry.path) for entry in self.store.list() if entry.is_folder)
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def save(self, step: int, files: Mapping[str, bytes], metrics: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint of a single writer and remove those that are no longer wanted.

        Args:
            step: Its number; a later checkpoint has a greater one.
            files: Contents by suffix, such as `safetensors` or `json`.
            metrics: What `best` may go by.

        Raises:
            StorageError: it could not be written; nothing that existed is harmed.
        """
        self.write_part(step, 0, files, {})
        self.commit(step, 1, metrics)

    def write_part(self, step: int, rank: int, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
        """Write one worker's files, and then its part, which lists them.

        Args:
            step: Number of the checkpoint.
            rank: The worker.
            files: Contents by suffix; no two workers write the same suffix.
            facts: What else the part says.

        Raises:
            StorageError: they could not be written; what was written of them is removed where that is possible.
        """
        listed: dict[str, dict[str, Any]] = {}
        try:
            for suffix, content in files.items():
                name = self.owner.file(suffix)
                self.store.write_bytes(f"step-{step}/{name}", content)
                listed[suffix] = _entry(name, content)
            part = json.dumps({"rank": rank, "files": listed, **facts}, separators=(",", ":")).encode()
            self.store.write_bytes(f"step-{step}/{self._part(rank)}", part)
        except StorageError:
            self._discard(step, [self.owner.file(suffix) for suffix in files])
            raise

    def commit(
        self,
        step: int,
        ranks: int,
        metrics: Mapping[str, float] | None = None,
        timeout: float = PART_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> dict[str, Any]:
        """Wait for the parts of all workers, write the manifest, and remove what is no longer wanted.

        Returns:
            The manifest.

        Raises:
            PartMissing: a worker did not write its part within `timeout` seconds, or soon after the run `failed`.
            StorageError: storage failed; nothing that existed is harmed.
        """
        parts = self._parts(step, ranks, timeout, clock)
        listed: dict[str, Any] = {}
        pieces: dict[str, list[Any]] = {}
        for _, part in parts:
            listed |= part["files"]
            for name, piece in part.get("pieces", {}).items():
                pieces.setdefault(name, []).append(piece)
        manifest = {
            "format": FORMAT,
            "step": step,
            "runId": self.owner.run_id,
            "fingerprint": self.owner.fingerprint,
            "attempt": self.owner.attempt,
            "workers": ranks,
            "metrics": dict(metrics or {}),
            "parts": [entry for entry, _ in parts],
            "files": listed,
            "pieces": pieces,
        }
        self.store.write_bytes(f"step-{step}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
        self._retire(step)
        return manifest

    def candidates(self, best: bool = False) -> Iterator[dict[str, Any]]:
        """Manifests of this owner's checkpoints, latest first; with `best` the best one before all.

        Raises:
            StorageError: storage cannot be read (what is merely missing in a checkpoint is no error).
        """
        found: list[dict[str, Any]] = []
        for step in self.steps():
            try:
                manifest = self._manifest(step)
            except Damaged as error:
                self.pass_over(step, error)
                continue
            if not self._is_ours(manifest):
                logger.warning(
                    "%s belongs to another run or configuration and is not used", self.store.uri_of(f"step-{step}")
                )
                continue
            if not best:
                yield manifest
            found.append(manifest)
        if best:
            first = self._best(found)
            yield from [item for item in found if item is first] + [item for item in found if item is not first]

    def pass_over(self, step: int, error: Damaged) -> None:
        """Put on record that a checkpoint cannot be used."""
        said = f"the checkpoint {self.store.uri_of(f'step-{step}')} cannot be used and the one before is tried: {error}"
        logger.warning("%s", said)
        self.passed_over.append(said)

    def read(self, step: int, entry: Mapping[str, Any]) -> bytes:
        """One verified file of a checkpoint.

        Args:
            step: Its number.
            entry: `{name, size, sha256}` of its manifest.

        Raises:
            Damaged: it is missing, or not what was written.
            StorageError: storage cannot be read.
        """
        try:
            content = self.store.read_bytes(f"step-{step}/{entry['name']}")
        except NotFound:
            raise Damaged(f"its file {entry['name']} is missing") from None
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise Damaged(
                f"its file {entry['name']} has {len(content)} of {entry['size']} bytes and not the SHA-256 "
                "that was written"
            )
        return content

    def latest(self) -> Loaded | None:
        """The latest checkpoint that is whole and of this owner, with all its files; None where there is none.

        Raises:
            StorageError: storage cannot be read (what is merely missing in a checkpoint is no error).
        """
        for manifest in self.candidates():
            step = manifest["step"]
            try:
                return Loaded(step, {suffix: self.read(step, entry) for suffix, entry in manifest["files"].items()})
            except Damaged as error:
                self.pass_over(step, error)
        return None

    def _part(self, rank: int) -> str:
        return self.owner.file(f"part-{rank}.json")

    def _parts(
        self, step: int, ranks: int, timeout: float, clock: Callable[[], float]
    ) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(entry, content) of each worker's part, in order of rank."""
        wanted = [self._part(rank) for rank in range(ranks)]
        began, pause = clock(), _POLL[0]
        deadline, failed = began + timeout, False
        missing = set(wanted[1:])
        while missing:
            if not failed and self.failed.is_set():
                failed, pause = True, _POLL[0]
                deadline = min(deadline, clock() + PART_TIMEOUT_OF_FAILED)
            missing -= {entry.path for entry in self.store.list(f"step-{step}")}
            if missing and clock() >= deadline:
                late = [str(rank) for rank, name in enumerate(wanted) if name in missing]
                shown = ", ".join(late[:5]) + (f" and {len(late) - 5} more" if len(late) > 5 else "")
                raise PartMissing(
                    self.store.uri_of(f"step-{step}"),
                    f"worker {shown} wrote no part of this checkpoint within {deadline - began:.3g} s",
                    "see that worker's log; every worker must call checkpoints.save at the same step",
                )
            if missing:
                if failed:
                    time.sleep(pause)
                else:
                    self.failed.wait(pause)
                pause = min(2 * pause, _POLL[1])

        def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
            content = self.store.read_bytes(f"step-{step}/{name}")
            return _entry(name, content), json.loads(content)

        if ranks == 1:
            return [read(wanted[0])]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="headrace-parts") as pool:
            return list(pool.map(read, wanted))

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

    def _is_ours(self, manifest: Mapping[str, Any]) -> bool:
        pairs = ((self.owner.run_id, manifest.get("runId")), (self.owner.fingerprint, manifest.get("fingerprint")))
        return all(not ours or not theirs or ours == theirs for ours, theirs in pairs)

    def _best(self, manifests: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The one with the best value of the metric; the later one of equals, None where no one has it."""
        best = self.best
        if best is None:
            return None
        having = [item for item in manifests if _is_number(item["metrics"].get(best.metric))]
        sign = -1 if best.mode == "Min" else 1
        return max(having, key=lambda item: (sign * item["metrics"][best.metric], item["step"]), default=None)

    def _retire(self, newest: int) -> None:
        """Remove all but the last `keep` and the best; unfinished and foreign ones do not count and go too."""
        ours: list[dict[str, Any]] = []
        others: list[int] = []
        for step in self.steps():
            try:
                manifest = self._manifest(step)
            except Damaged:
                if self._is_being_written_by_a_successor(step):
                    return
                others.append(step)
                continue
            if not self._is_ours(manifest) or step > newest:
                if self._is_ours(manifest) and int(manifest["attempt"]) > self.owner.attempt:
                    return  # A later attempt has taken over: its checkpoints are not ours to remove.
                others.append(step)
            elif int(manifest["attempt"]) > self.owner.attempt:
                return
            else:
                ours.append(manifest)
        best = self._best(ours)
        for step in [*others, *(item["step"] for item in ours[self.keep :] if item is not best)]:
            # The manifest first: from here on nobody takes the folder for a checkpoint.
            self.store.delete(f"step-{step}/{MANIFEST}")
            self.store.delete(f"step-{step}")

    def _is_being_written_by_a_successor(self, step: int) -> bool:
        names = (_ATTEMPT.search(entry.path) for entry in self.store.list(f"step-{step}"))
        return any(int(name[1]) > self.owner.attempt for name in names if name)

    def _discard(self, step: int, names: list[str]) -> None:
        for name in names:
            try:
                self.store.delete(f"step-{step}/{name}")
            except StorageError as error:
                logger.warning("an unfinished file of a checkpoint is left: %s", error)
                return


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
