"""SIGTERM, also while the main thread waits inside a collective.

A Python signal handler runs only when the interpreter gets control back, which a thread that waits for a dead peer in
C++ does not give. The signal's number is also written to a pipe by C code at once (`signal.set_wakeup_fd`); a thread
reads it and ends the process when the main thread has not done so within the grace time.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from types import TracebackType

from headrace.training.errors import EXIT_INTERRUPTED

logger = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds from SIGTERM to the end of the process, whatever the main thread does; kubelet's own default is 30."""


class Interruption:
    """A context in which SIGTERM sets `requested` and ends the process after `grace` seconds.

    Outside of the main thread, where Python allows no signal handlers, it does nothing.

    Attributes:
        grace: Seconds; may be changed while nothing has come.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self.grace = grace
        self._requested = threading.Event()
        self._left = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether SIGTERM came."""
        return self._requested.is_set()

    def __enter__(self) -> Interruption:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
            threading.Thread(target=self._watch, name="headrace-interruption", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._left.set()
            signal.signal(signal.SIGTERM, self._previous)
            signal.set_wakeup_fd(self._previous_fd)
            self._writer.close()

    def _on_signal(self, number: int, frame: object) -> None:
        self._requested.set()

    def _watch(self) -> None:
        with self._reader:
            while True:
                numbers = self._reader.recv(64)
                if not numbers:
                    return
                if signal.SIGTERM in numbers:
                    break
        self._requested.set()
        if not self._left.wait(self.grace):
            logger.warning("still busy %g s after SIGTERM; the process ends now", self.grace)
            logging.shutdown()
            os._exit(EXIT_INTERRUPTED)
