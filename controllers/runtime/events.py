"""Kubernetes Events about resources: counted instead of repeated, bounded per resource, and never in the way.

An Event equal to an earlier one (same resource, type, reason, note and action) within `SERIES_WINDOW` becomes a
series: the object that exists gets a higher count, as events.k8s.io/v1 defines. Different Events of one resource come
out of a token bucket of client-go's dimensions (25 at once, then one every 5 minutes), so a resource that flaps
cannot fill etcd. Events are written in the background; one that cannot be written is logged and dropped, since a
reconcile must not fail for want of a remark about it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from controllers.runtime.client import MERGE_PATCH, ApiClient, ApiError, NotLeader, collection_path, object_path
from controllers.runtime.objects import Key, Manifest, ObjectType
from controllers.runtime.plan import Event

logger = logging.getLogger(__name__)

EVENT: Final = ObjectType("events.k8s.io/v1", "Event", "events", watched=False)
SERIES_WINDOW: Final = 360.0
"""Seconds after which an equal Event is a new one (client-go's 6 minutes)."""
BURST: Final = 25
REFILL: Final = 300.0
"""Seconds per further Event once the burst is used up."""
LANES: Final = 4
"""Events written at a time; those of one resource share a lane, so that they keep their order."""
NOTE_LIMIT: Final = 1024
"""Bytes of a note that the API server accepts."""
REMEMBERED: Final = 4096
"""Events and resources remembered; the oldest go first."""

_Identity = tuple[str, str, str, str, str]


@dataclass(slots=True)
class _Series:
    name: str
    count: int = 1
    last: float = 0.0


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


@dataclass(frozen=True, slots=True)
class _Job:
    resource: Manifest = field(repr=False)
    event: Event
    at: datetime


class EventRecorder:
    """Writes Events from a queue; `run` must be running."""

    def __init__(
        self,
        client: ApiClient,
        *,
        controller: str = "headrace.dev/operator",
        instance: str = "headrace-operator",
        clock: Callable[[], float] = time.monotonic,
        limit: int = 10_000,
    ) -> None:
        """
        Args:
            client: The API server.
            controller: reportingController of the Events.
            instance: reportingInstance: this process, at most 128 characters.
            clock: Time of series and buckets.
            limit: Events waiting to be written; further ones are dropped.
        """
        self._client = client
        self._controller = controller
        self._instance = instance[:128]
        self._clock = clock
        self._lanes: list[asyncio.Queue[_Job]] = [asyncio.Queue(limit // LANES) for _ in range(LANES)]
        self._series: OrderedDict[_Identity, _Series] = OrderedDict()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def emit(self, resource: Manifest, event: Event) -> None:
        """Write an Event about the resource soon."""
        if not self._take_token(resource["metadata"]["uid"]):
            return
        job = _Job(_reference(resource), event, datetime.now(UTC))
        lane = self._lanes[zlib.crc32(resource["metadata"]["uid"].encode()) % LANES]
        try:
            lane.put_nowait(job)
        except asyncio.QueueFull:
            logger.warning("too many Events wait to be written, dropped one: %s %s", event.reason, event.note)

    async def run(self) -> None:
        """Write Events until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._serve(lane))

    async def drain(self, seconds: float) -> None:
        """Wait until all Events are written, at most this long."""
        try:
            async with asyncio.timeout(seconds):
                for lane in self._lanes:
                    await lane.join()
        except TimeoutError:
            logger.warning("%d Events were not written before the end", sum(lane.qsize() for lane in self._lanes))

    async def _serve(self, lane: asyncio.Queue[_Job]) -> None:
        while True:
            job = await lane.get()
            try:
                await self._write(job)
            except (ApiError, NotLeader) as error:
                logger.info("could not write Event %s: %s", job.event.reason, error)
            finally:
                lane.task_done()

    async def _write(self, job: _Job) -> None:
        event = job.event
        note = _cut(event.note)
        # Cluster-scoped objects have their Events in `default`.
        namespace = job.resource.get("namespace") or "default"
        identity = (job.resource["uid"], event.type, event.reason, note, event.action)
        now = self._clock()
        moment = job.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        series = self._series.get(identity)
        if series is not None and now - series.last < SERIES_WINDOW:
            series.count += 1
            series.last = now
            body = {"series": {"count": series.count, "lastObservedTime": moment}}
            try:
                path = object_path(EVENT, Key(namespace, series.name))
                await self._client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
                return
            except ApiError as error:
                if error.status != 404:  # Events expire; then this is a first one again
                    raise
        # client-go names Events by the object and the time; a random part cannot collide.
        name = f"{job.resource['name'][:200]}.{uuid.uuid4().hex[:16]}"
        manifest = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": moment,
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "action": event.action,
            "reason": event.reason,
            "regarding": job.resource,
            "note": note,
            "type": event.type,
        }
        await self._client.request("POST", collection_path(EVENT, namespace), body=manifest)
        self._series[identity] = _Series(name, last=now)
        self._series.move_to_end(identity)
        if len(self._series) > REMEMBERED:
            self._series.popitem(last=False)

    def _take_token(self, uid: str) -> bool:
        now = self._clock()
        bucket = self._buckets.get(uid) or _Bucket(BURST, now)
        bucket.tokens = min(BURST, bucket.tokens + (now - bucket.at) / REFILL)
        bucket.at = now
        self._buckets[uid] = bucket
        self._buckets.move_to_end(uid)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


def _reference(resource: Manifest) -> Manifest:
    metadata = resource["metadata"]
    return {
        "apiVersion": resource["apiVersion"],
        "kind": resource["kind"],
        "name": metadata["name"],
        "namespace": metadata.get("namespace") or "",
        "uid": metadata["uid"],
        "resourceVersion": metadata.get("resourceVersion", ""),
    }


def _cut(note: str) -> str:
    data = note.encode()
    if len(data) <= NOTE_LIMIT:
        return note
    return data[: NOTE_LIMIT - len("…".encode())].decode(errors="ignore") + "…"
