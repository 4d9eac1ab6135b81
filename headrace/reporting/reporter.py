"""Latest wins: reports are kept in one slot, and a daemon thread sends what is in it when it may.

`report` only replaces the slot, so it costs the caller a few microseconds and never waits for the network. The thread
sends when the content differs from what was sent last and the least interval has passed; after an error it waits
longer each time, and the newest report goes out when the way is free again. Nothing it meets ever reaches the caller:
each kind of error is logged once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from headrace.reporting.pod import PodAnnotation, ReportRefused, in_cluster

logger = logging.getLogger(__name__)

MIN_INTERVAL = 2.0
"""Seconds between two sent reports."""
MAX_BACKOFF = 30.0
"""Most seconds between two tries while sending fails."""
CLOSING_RETRY = 1.0
"""Seconds between two tries of the last report."""


class Reporter:
    """Sends reports through `sink` from a thread of its own.

    Args:
        sink: Takes one line of JSON; may block and may raise.
        min_interval: Seconds between two calls of the sink.
    """

    def __init__(self, sink: Callable[[str], None], min_interval: float = MIN_INTERVAL) -> None:
        self._sink = sink
        self._min_interval = min_interval
        self._changed = threading.Condition()
        self._latest: Mapping[str, Any] | None = None
        self._pending = False
        self._give_up: float | None = None
        self._sent = ""
        self._seen_errors: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="headrace-reporter", daemon=True)
        self._thread.start()

    def report(self, content: Mapping[str, Any]) -> None:
        """Make `content` the latest report. It is encoded later, so it must not be changed afterwards."""
        with self._changed:
            self._latest = content
            self._pending = True
            self._changed.notify()

    def close(self, timeout: float = 10.0) -> bool:
        """Send the latest report if it was not, trying for at most `timeout` seconds.

        Returns:
            Whether everything was sent.
        """
        with self._changed:
            self._give_up = time.monotonic() + timeout
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive() and not self._pending

    async def aclose(self, timeout: float = 10.0) -> bool:  # noqa: ASYNC109 - it is handed on, not enforced here
        """`close` for an event loop."""
        return await asyncio.to_thread(self.close, timeout)

    def _run(self) -> None:
        not_before = 0.0
        failures = 0
        while True:
            content = self._take(not_before)
            if content is None:
                return
            sent = self._send(content)
            failures = 0 if sent else failures + 1
            pause = self._min_interval if sent else min(MAX_BACKOFF, max(self._min_interval, 0.5) * 2 ** (failures - 1))
            not_before = time.monotonic() + pause

    def _take(self, not_before: float) -> Mapping[str, Any] | None:
        """Wait until there is something that may be sent; None when there is nothing more to do."""
        with self._changed:
            last_try = time.monotonic()
            while True:
                now = time.monotonic()
                if self._give_up is not None:
                    if not self._pending or now >= self._give_up:
                        return None
                    # Closing: no throttle, but no hammering of a server that fails.
                    not_before = min(not_before, last_try + (CLOSING_RETRY if self._seen_errors else 0.0))
                if self._pending and now >= not_before:
                    self._pending = False
                    return self._latest
                self._changed.wait(max(0.0, not_before - now) if self._pending else None)

    def _send(self, content: Mapping[str, Any]) -> bool:
        try:
            line = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            if line != self._sent:
                self._sink(line)
                self._sent = line
        except (TypeError, ValueError) as error:
            # The report itself is wrong: sending it again cannot help.
            self._log(error)
        except Exception as error:  # noqa: BLE001 - whatever a sink raises must not reach the work reported on
            self._log(error)
            with self._changed:
                self._pending = True
            return False
        return True

    def _log(self, error: Exception) -> None:
        kind = f"{type(error).__name__}:{error.status if isinstance(error, ReportRefused) else ''}"
        if kind not in self._seen_errors:
            self._seen_errors.add(kind)
            logger.warning("a report could not be sent; further errors of this kind are not logged: %s", error)


def pod_reporter(sink: Callable[[str], None] | None = None, min_interval: float = MIN_INTERVAL) -> Reporter:
    """The reporter of this process: to its own pod in a cluster, otherwise to `sink` (by default nowhere)."""
    if in_cluster():
        return Reporter(PodAnnotation.own(), min_interval)
    return Reporter(sink or _nowhere, min_interval)


def _nowhere(report: str) -> None:
    """Outside Kubernetes nobody listens."""
