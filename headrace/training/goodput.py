"""Where the time of a run goes: steps that count, and what was lost to starts, restarts, checkpoints and hangs.

Worker 0 keeps the account and writes it to storage every few seconds, so that the next session, in whatever pod and
attempt, knows what the one before it had done when it ended:

- time between two steps is useful, less what saving a checkpoint took of it;
- steps after the checkpoint from which a run goes on were for nothing: `lostSteps`;
- from the last step before the end to the first of the next session is `restart`, and of that the time in which the
  process was alive and finished no step is `hang`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headrace.storage import StorageError, Store

logger = logging.getLogger(__name__)

FILE = "goodput.json"
WRITE_EVERY = 5.0
"""Seconds between two writes to storage: how exactly the end of a killed session is known."""
HANG_LEAST = 5.0
"""Seconds without a step below which nobody speaks of a hang,"""
HANG_STEPS = 20
"""and the number of usual steps for which it must have lasted."""


@dataclass(slots=True)
class Account:
    """Seconds of a run by what they were spent on; `since` and `at` are seconds since the epoch.

    Attributes:
        since: When the first session began.
        at: Up to when this is known.
        useful: Steps that count.
        startup: From the first session's begin to its training.
        restart: From the last step of a session that ended to the training of the next.
        checkpoint: Steps held up by saving.
        lost_steps: Steps that had to be done again.
        hang: No step was finished, and then the session ended.
    """

    since: float = 0.0
    at: float = 0.0
    useful: float = 0.0
    startup: float = 0.0
    restart: float = 0.0
    checkpoint: float = 0.0
    lost_steps: float = 0.0
    hang: float = 0.0

    def content(self) -> dict[str, float]:
        """As the report has it."""
        return {_camel(name): round(value, 2) for name, value in asdict(self).items()}


class Goodput:
    """The account of the session that runs.

    Args:
        run_id: Whose account it is; another one's is not gone on with.
        clock: Seconds since the epoch.
    """

    def __init__(self, run_id: str = "", clock: Callable[[], float] = time.time) -> None:
        self._run_id = run_id
        self._clock = clock
        self._started = clock()
        self._account = Account(since=self._started, at=self._started)
        self._earlier: Mapping[str, Any] | None = None
        self._begun: float | None = None
        self._last_step = self._started
        self._steps = 0
        self._pauses = 0.0
        self._lock = threading.Lock()

    def take_over(self, record: Mapping[str, Any] | None) -> None:
        """Go on with the account of the session before, as `record` wrote it."""
        if record is None or record.get("runId", "") != self._run_id:
            return
        try:
            known = {name: float(record[_camel(name)]) for name in asdict(self._account)}
            float(record["lastStep"])
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("the account of an earlier session cannot be read and starts anew: %r", error)
            return
        with self._lock:
            self._account = Account(**known)
            self._earlier = record

    def begin(self, useful: float | None) -> None:
        """Training begins.

        Args:
            useful: Seconds of steps that the restored checkpoint holds; None where there is none.
        """
        with self._lock:
            now, account, earlier = self._clock(), self._account, self._earlier
            if self._begun is not None:
                return
            if earlier is None or not earlier.get("begun", True):
                account.startup = now - account.since
            else:
                last = min(float(earlier["lastStep"]), now)
                hang = max(0.0, float(earlier["at"]) - last)
                step = float(earlier.get("step", 0.0))
                hang = hang if hang >= max(HANG_LEAST, HANG_STEPS * step) else 0.0
                account.hang += hang
                account.restart += max(0.0, now - last - hang)
                account.lost_steps += max(0.0, account.useful - (useful or 0.0))
            account.useful = useful or 0.0
            account.at = self._begun = self._last_step = now

    def step(self, paused: float) -> None:
        """A step was finished.

        Args:
            paused: Seconds that saving checkpoints took in this session so far.
        """
        now = self._clock()
        with self._lock:
            if self._begun is None:
                return
            pause = min(max(0.0, paused - self._pauses), now - self._last_step)
            self._pauses = paused
            self._account.checkpoint += pause
            self._account.useful += max(0.0, now - self._last_step - pause)
            self._account.at = self._last_step = now
            self._steps += 1

    @property
    def useful(self) -> float:
        """Seconds of steps that count."""
        return self._account.useful

    def content(self) -> dict[str, float]:
        """For the report."""
        with self._lock:
            self._account.at = max(self._account.at, self._clock()) if self._begun is not None else self._account.at
            return self._account.content()

    def record(self) -> dict[str, Any]:
        """For the next session."""
        with self._lock:
            if self._begun is None and self._earlier is not None:
                return dict(self._earlier)  # nothing to add, and the way back goes on
            account, now = self._account, self._clock()
            step = (self._last_step - self._begun) / self._steps if self._begun and self._steps else 0.0
            return {
                **asdict_camel(account),
                "at": now,
                "runId": self._run_id,
                "begun": self._begun is not None,
                "lastStep": self._last_step,
                "step": step,
            }


class Keeper:
    """Writes the account to storage from a thread.

    Args:
        goodput: The account.
        store: Folder of the run.
        every: Seconds between two writes.
    """

    def __init__(self, goodput: Goodput, store: Store, every: float) -> None:
        self._goodput, self._store, self._every = goodput, store, every
        self._ended = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="headrace-goodput", daemon=True)

    def start(self) -> None:
        """Take over what the session before left, and go on writing."""
        try:
            if self._store.exists(FILE):
                self._goodput.take_over(json.loads(self._store.read_bytes(FILE)))
        except (StorageError, ValueError) as error:
            logger.warning("the account of an earlier session cannot be read and starts anew: %s", error)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Write a last time, for at most `timeout` seconds."""
        self._ended.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        self._write()  # the next session then knows when the first one began
        while not self._ended.wait(self._every):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            self._store.write_bytes(FILE, json.dumps(self._goodput.record()).encode())
            self._failed = False
        except StorageError as error:
            if not self._failed:
                logger.warning("the account of the run's time is not saved at present: %s", error)
            self._failed = True


def asdict_camel(account: Account) -> dict[str, float]:
    """All figures by their name in JSON, exact."""
    return {_camel(name): value for name, value in asdict(account).items()}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
