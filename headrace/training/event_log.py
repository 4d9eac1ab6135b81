"""TensorBoard's event files in the run's storage: `tensorboard/attempt-<n>/`.

Storage cannot append, so files are written locally and uploaded whole every now and then; a new one is begun before
they become large. `tensorboard --logdir s3://…/tensorboard` shows the run.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from headrace.storage import StorageError, Store

logger = logging.getLogger(__name__)

UPLOAD_EVERY = 30.0
"""Seconds between two uploads."""
LARGEST = 1 << 20
"""Bytes after which a new file is begun."""


class EventLog:
    """Writes scalars from a thread of its own.

    Args:
        store: Folder of the run's event files.
        every: Seconds between two uploads.
    """

    def __init__(self, store: Store, every: float = UPLOAD_EVERY) -> None:
        self._store = store
        self._every = every
        self._queue: SimpleQueue[tuple[int, float, Mapping[str, float]]] = SimpleQueue()
        self._ended = threading.Event()
        self._failed = False
        self._number = 0
        self._thread = threading.Thread(target=self._run, name="headrace-tensorboard", daemon=True)
        self._thread.start()

    def add(self, step: int, at: float, scalars: Mapping[str, float]) -> None:
        """Log numbers of a step; `at` is seconds since the epoch."""
        self._queue.put((step, at, scalars))

    def close(self, timeout: float) -> None:
        """Upload the rest, for at most `timeout` seconds."""
        self._ended.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="headrace-tensorboard-"))
        try:
            writer: Any = None
            ended = False
            while not ended:
                ended = self._ended.wait(self._every)
                writer = self._write(writer, folder)
            if writer is not None:
                writer.close()
        except OSError as error:
            logger.warning("TensorBoard's logs are not written: %s", error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, writer: Any, folder: Path) -> Any:
        if self._queue.empty():
            return writer
        if writer is None:
            from tensorboardX import SummaryWriter

            self._number += 1
            inner = folder / str(self._number)
            writer = SummaryWriter(str(inner), filename_suffix=f".{self._number:06d}", write_to_disk=True)
        while not self._queue.empty():
            step, at, scalars = self._queue.get()
            for name, value in scalars.items():
                writer.add_scalar(name, value, step, walltime=at)
        writer.flush()
        size = 0
        for path in (folder / str(self._number)).iterdir():
            content = path.read_bytes()
            size += len(content)
            self._upload(path.name, content)
        if size > LARGEST:
            writer.close()
            return None
        return writer

    def _upload(self, name: str, content: bytes) -> None:
        try:
            self._store.write_bytes(name, content)
            self._failed = False
        except StorageError as error:
            if not self._failed:
                logger.warning("TensorBoard's logs are not saved at present: %s", error)
            self._failed = True
