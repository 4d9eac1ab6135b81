"""Waiting out a store that restarts, where giving up would cost more than the wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from headrace.storage.errors import StorageError

logger = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds for which an operation is tried again: enough for a store's pod to come up on another node."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0

T = TypeVar("T")


def patiently(action: Callable[[], T], seconds: float = PATIENCE) -> T:
    """The result of `action`, which is tried again with growing pauses while the store does not answer.

    Args:
        action: May be called several times.
        seconds: After which no new try begins.

    Raises:
        StorageError: of the last try; at once where waiting cannot help.
    """
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while True:
        try:
            return action()
        except StorageError as error:
            left = deadline - time.monotonic()
            if not error.retryable or left <= 0:
                raise
            pause = min(pause, left)
            logger.warning("%s; next try in %.1f s", error, pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
