"""A sample of requests and answers, kept for whoever wants to know later what was asked.

Serving never waits for it: a request is offered and either taken or dropped, at once. What is taken is the bytes as
they came; a thread reads them and hands them to a `Sink` from time to time. The bytes that wait are bounded
(`MAX_BYTES`), so a sink that is slow or gone costs records, which are counted, and neither memory nor answers.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter

from headrace.serving.messages import Query, Reply
from headrace.storage import StorageError

log = logging.getLogger(__name__)

MAX_BYTES = 32 << 20
"""Bytes of records that wait to be written."""
FULL = 8 << 20
"""Bytes at which they are written before their time."""
LAST_WORDS = 4.0
"""Seconds for what is left when the process ends."""
_OVERHEAD = 512
"""Bytes that a record takes beside its bodies."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request and its answer.

    Attributes:
        at: When it was answered, seconds since the epoch.
        step: Who answered; empty for nobody.
        arm: Arm of the traffic; empty where there is one.
        seconds: Time that the chain took.
        reply: None where nobody answered.
    """

    at: float
    step: str
    arm: str
    seconds: float
    query: Query
    reply: Reply | None

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return _OVERHEAD + len(self.query.body) + (len(self.reply.body) if self.reply else 0)


class Sink(Protocol):
    """Where records go."""

    def write(self, records: Sequence[Record]) -> None:
        """Write all of them or none; blocks.

        Raises:
            StorageError: they could not be written.
        """


@dataclass
class RequestLog:
    """Takes a part of the records and has them written.

    Attributes:
        service: Name of the service, a label of the figures.
        sink: Where they go.
        percent: Percent of the records that are taken.
        interval: Seconds after which they are written.
        registry: Where it counts.
        chance: Random numbers in [0, 1).
        wall: Seconds since the epoch.
    """

    service: str
    sink: Sink
    percent: int
    interval: float
    registry: CollectorRegistry
    chance: Callable[[], float] = random.random
    wall: Callable[[], float] = time.time
    _waiting: list[Record] = field(default_factory=list)
    _bytes: int = 0
    _writing: int = 0
    _full: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        counter = Counter(
            "headrace_request_log_records_total",
            "Records of the request log by what became of them: written, dropped (no room, or the store refused).",
            ["service", "outcome"],
            registry=self.registry,
        )
        self._written, self._dropped = (counter.labels(self.service, name) for name in ("written", "dropped"))

    def offer(self, query: Query, reply: Reply | None, step: str, arm: str, seconds: float) -> None:
        """Take a record if chance and room allow it; never waits."""
        if self.chance() * 100 >= self.percent:
            return
        record = Record(self.wall(), step, arm, seconds, query, reply)
        if self._bytes + self._writing + record.size > MAX_BYTES:
            self._dropped.inc()
            return
        self._waiting.append(record)
        self._bytes += record.size
        if self._bytes >= FULL:
            self._full.set()

    async def run(self) -> None:
        """Write what waits, every `interval` seconds or when it is much, until cancelled; then what is left."""
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self.interval)
                await self._write(patient=True)
        except asyncio.CancelledError:
            try:
                await asyncio.wait_for(self._write(patient=False), LAST_WORDS)
            except TimeoutError:
                log.warning("the last records of the request log are lost: the store is too slow")
            raise

    async def _write(self, *, patient: bool) -> None:
        records, self._waiting = self._waiting, []
        self._writing, self._bytes = self._bytes, 0
        self._full.clear()
        try:
            await self._deliver(records, patient)
        finally:
            self._writing = 0

    async def _deliver(self, records: Sequence[Record], patient: bool) -> None:
        if not records:
            return
        pause = 1.0
        while True:
            try:
                await asyncio.to_thread(self.sink.write, records)
            except StorageError as error:
                more = patient and error.retryable
                what = "trying again" if more else f"{len(records)} records are lost"
                log.warning("the request log is not written; %s", what, extra={"fields": {"reason": str(error)}})
                if not more:
                    self._dropped.inc(len(records))
                    return
            except asyncio.CancelledError:
                # Whether the store has them is not known; they are the next ones' to lose, not to have twice.
                self._dropped.inc(len(records))
                raise
            else:
                self._written.inc(len(records))
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, 30.0)
