"""Leader election by one Lease, with client-go's algorithm and times.

A candidate takes the Lease when nobody holds it or when its record has not changed for the lease's duration (15 s) by
the candidate's own clock, so clocks need not agree. The holder renews it every 2 s; when it has not succeeded for 10
s it has lost, before anybody else may have won. The process then exits: whatever it had in mind is stale. A process
that ends in good order gives the Lease back, and the standby has it within one retry period.

Between the last renewal that succeeded and now no more than the renew deadline may lie when something is written:
`check` is called before every write. It also stops a process that was paused and wakes up as no longer leader.

The official client's asynchronous election (`kubernetes.aio.leaderelection`) was looked at: it does not give the
Lease back, and a request that hangs keeps it from noticing that it has lost for as long as five minutes. So this one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from controllers.runtime.client import ApiClient, ApiError, NotLeader, collection_path, object_path
from controllers.runtime.objects import Key, ObjectType

logger = logging.getLogger(__name__)

LEASE: Final = ObjectType("coordination.k8s.io/v1", "Lease", "leases", watched=False)


class LeadershipLost(Exception):
    """Another process may lead from now on."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Times of an election, seconds: duration > renew_deadline > retry_period."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0


class LeaderElection:
    """One candidate for one Lease."""

    def __init__(
        self,
        client: ApiClient,
        key: Key,
        identity: str,
        *,
        times: LeaseTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            client: For the Lease alone, so that no other request holds it up.
            key: Namespace and name of the Lease.
            identity: Unique name of this process.
            times: Duration, renew deadline and retry period.
            clock: A clock that never goes back.
        """
        self._client = client
        self._key = key
        self._identity = identity
        self._times = times or LeaseTimes()
        self._clock = clock
        self._lease: dict[str, Any] | None = None
        self._observed: tuple[Any, ...] = ()
        self._observed_at = clock()
        self._renewed_at: float | None = None
        self.last_contact: float | None = None
        """When the API server last answered about the Lease, by the clock; None before the first time."""
        self.last_attempt = clock()
        """When the Lease was last asked for, by the clock."""

    @property
    def leading(self) -> bool:
        """Whether nobody else can lead now."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < self._times.renew_deadline

    def check(self) -> None:
        """Raise NotLeader when somebody else may lead."""
        if not self.leading:
            raise NotLeader("the Lease was not renewed in time")

    async def acquire(self) -> None:
        """Return once this process leads."""
        logger.info("waiting for the Lease %s as %s", self._key, self._identity)
        while True:
            if await self._try():
                logger.info("leading")
                return
            await asyncio.sleep(self._times.retry_period * random.uniform(1.0, 1.2))

    async def keep(self) -> None:
        """Renew until cancelled.

        Raises:
            LeadershipLost: The Lease could not be renewed in time.
        """
        while True:
            await asyncio.sleep(self._times.retry_period)
            if not await self._try() and not self.leading:
                raise LeadershipLost(f"the Lease {self._key} was not renewed within {self._times.renew_deadline:g} s")

    async def release(self) -> None:
        """Give the Lease back, so that a standby need not wait until it expires."""
        if not self.leading:
            return
        self._renewed_at = None
        try:
            async with asyncio.timeout(self._times.renew_deadline / 2):
                await self._give_back()
        except (ApiError, TimeoutError) as error:
            reason = str(error) or "no answer in time"
            logger.warning("could not give the Lease back, the standby takes it when it expires: %s", reason)

    async def _give_back(self) -> None:
        lease, again = self._lease, True
        while True:
            if lease is None:
                lease = await self._get()
            if lease is None or _holder(lease) != self._identity:
                return
            spec = {**self._spec(), "holderIdentity": "", "leaseDurationSeconds": 1}
            try:
                await self._put({**lease, "spec": spec})
                return
            except ApiError as error:
                if error.status != 409 or not again:
                    raise
                lease, again = None, False  # a renewal of ours whose answer nobody waited for was carried out

    async def _try(self) -> bool:
        """Take or renew the Lease; False when that did not succeed now."""
        again = True
        while True:
            try:
                return await self._attempt()
            except ApiError as error:
                if error.status != 409:
                    logger.warning("could not reach the Lease %s: %s", self._key, error)
                    return False
                # The holder's own renewal is the likeliest reason: it was carried out but the answer was lost, or it
                # was sent twice over a connection that dropped. Only the Lease itself tells whether somebody took it.
                if not (again and self.leading):
                    return False
                again = False

    async def _attempt(self) -> bool:
        # Counted from before the request, since the others count from when they see it.
        asked = self.last_attempt = self._clock()
        # Without an answer, or with an error for one, nobody knows what the Lease is; then it is read the next time.
        lease, self._lease = self._lease, None
        if lease is None or not self.leading:
            lease = await self._get()
            self.last_contact = self._clock()
            if self._held_by_other(lease):
                self._renewed_at = None
                return False
        self._lease = await (self._create() if lease is None else self._put(self._claim(lease)))
        self.last_contact = self._clock()
        self._renewed_at = asked
        return True

    def _held_by_other(self, lease: dict[str, Any] | None) -> bool:
        if lease is None:
            return False
        spec = lease.get("spec") or {}
        record = tuple(spec.get(field) for field in ("holderIdentity", "renewTime", "acquireTime", "leaseTransitions"))
        now = self._clock()
        if record != self._observed:
            self._observed, self._observed_at = record, now
        if _holder(lease) in ("", self._identity):
            return False
        return now < self._observed_at + float(spec.get("leaseDurationSeconds") or self._times.duration)

    def _claim(self, lease: dict[str, Any]) -> dict[str, Any]:
        spec = self._spec()
        before = lease.get("spec") or {}
        transitions = before.get("leaseTransitions") or 0
        if before.get("holderIdentity") == self._identity:
            spec["acquireTime"] = before.get("acquireTime") or spec["acquireTime"]
        else:
            transitions += 1
        return {**lease, "spec": {**before, **spec, "leaseTransitions": transitions}}

    def _spec(self) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._times.duration),
            "acquireTime": now,
            "renewTime": now,
        }

    async def _get(self) -> dict[str, Any] | None:
        try:
            return await self._request("GET", object_path(LEASE, self._key))
        except ApiError as error:
            if error.status == 404 and error.details.get("kind") != "namespaces":
                return None
            raise

    async def _create(self) -> dict[str, Any]:
        metadata = {"name": self._key.name, "namespace": self._key.namespace}
        body = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": self._spec()}
        return await self._request("POST", collection_path(LEASE, self._key.namespace), body)

    async def _put(self, lease: dict[str, Any]) -> dict[str, Any]:
        return await self._request("PUT", object_path(LEASE, self._key), lease)

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        # A request that hangs must leave time for others before the deadline, and none of a leader goes beyond it.
        seconds = self._times.renew_deadline / 2
        if self._renewed_at is not None:
            left = self._renewed_at + self._times.renew_deadline - self._clock()
            seconds = min(seconds, left) if left > 0 else seconds
        return await self._client.request(method, path, body=body, seconds=seconds)


def _holder(lease: dict[str, Any]) -> str:
    return (lease.get("spec") or {}).get("holderIdentity") or ""
