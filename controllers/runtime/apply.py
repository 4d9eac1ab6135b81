"""Carry out a plan's writes: the fewest requests that make the cluster what the plan wants.

Children are written by server-side apply with one field manager, so fields that other managers own (an autoscaler's
`replicas`, an injected sidecar) are theirs, and fields that we once set and no longer want go away. A child that
already carries all that is wanted is not written: that is known without even parsing it when its stored version is
the one that our last apply returned, and otherwise by comparing (`compare.carries`) and by the hash of what was last
applied, which is kept in the annotation `headrace.dev/applied` to notice fields that we no longer want.

Three kinds of objects are special:

- *Pods are created, never changed*: nearly all of a pod is immutable, so a new release of the operator with another
  idea of a pod must not touch those that run. Plain create also says when somebody else has the name. What is said to
  running ones are annotations (`Annotate`).
- *Objects that are not there yet* are applied on condition that there is none, because apply would silently take over
  an object of the same name that somebody else made.
- *Types that are not watched* (Secrets) are written once per process, namespace and content, again after
  `REAPPLY_AFTER`, and when a pod waits for one after `RESTORE_AFTER`.
- *Fields that cannot change* (the role of a RoleBinding, `REPLACED`): the object is deleted and made again.

A status is replaced as a whole: it has one writer, and an apply of it would cost the API server a fifth more.

Errors come back typed (`controllers.runtime.errors`): what may pass by itself is to be retried, what needs somebody
else is waited for, what the API server calls invalid is terminal until the spec changes. A namespace or a resource
that is going away is no error: `Gone` ends the reconcile quietly.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

import orjson

from controllers.runtime.cache import CacheSet
from controllers.runtime.client import (
    APPLY_PATCH,
    JSON,
    MERGE_PATCH,
    ApiClient,
    ApiError,
    collection_path,
    object_path,
)
from controllers.runtime.compare import carries
from controllers.runtime.errors import ReconcileError, RetryError, TerminalError, WaitError
from controllers.runtime.objects import MANAGED_LABELS, POD, ROLE_BINDING, Key, Manifest, ObjectType, key_of
from controllers.runtime.plan import Annotate, Apply, Delete
from controllers.runtime.store import ObjectStore, Owner, controlling_owner
from headrace.api.meta import parse_quantity

logger = logging.getLogger(__name__)

FIELD_MANAGER: Final = "headrace"
APPLIED: Final = "headrace.dev/applied"
"""Annotation with the hash of what was last applied."""
REAPPLY_AFTER: Final = 3600.0
"""Seconds after which an object of an unwatched type is applied again."""
RESTORE_AFTER: Final = 5.0
"""Seconds after which it is when something waits for it: thousands of pods may say so at the same time."""
REPLACED: Final[Mapping[ObjectType, str]] = {ROLE_BINDING: "roleRef"}
"""Types with a field that the API server lets nobody change."""
NEVER: Final = "1"
"""A resourceVersion that no object has: etcd counts its writes from 2. An apply that names it creates or fails; `0`
would mean any."""
_APPLY_PARAMS: Final = {"fieldManager": FIELD_MANAGER, "force": "true"}


T = TypeVar("T")


class Gone(Exception):
    """The resource or its namespace is being deleted, so there is nothing left to do."""


class TransientApiError(RetryError):
    """The API server did not do what it was asked and may do it next time."""


class Applier:
    """Writes for one operator process."""

    def __init__(
        self,
        client: ApiClient,
        caches: CacheSet,
        *,
        concurrency: int = 32,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            client: The API server.
            caches: What is known of it; answers to writes are recorded there.
            concurrency: Writes under way at once, over all resources.
            clock: Age of what was applied to unwatched types.
        """
        self._client = client
        self._caches = caches
        self._slots = asyncio.Semaphore(concurrency)
        self._clock = clock
        self._unwatched: dict[tuple[ObjectType, Key], tuple[str, float]] = {}
        # Resource -> its uid, the digest of the status that was applied, and what the server made of that.
        self._status: dict[tuple[str, Key], tuple[str, str, Mapping[str, Any]]] = {}

    async def apply(self, owner: Manifest, applies: Sequence[Apply]) -> int:
        """Apply children in order, neighbouring pods at the same time; returns the number of writes.

        Raises:
            ReconcileError: One could not be applied; those after it were not tried.
            Gone: The namespace is going away.
        """
        writes = 0
        for immutable, group in itertools.groupby(applies, key=lambda item: item.type == POD):
            if not immutable:
                for item in group:
                    writes += await self._apply(owner, item)
                continue
            writes += sum(await _all(self._create(owner, item) for item in group))
        return writes

    async def delete(self, owner: Manifest, deletes: Sequence[Delete]) -> int:
        """Delete objects, all at the same time; returns the number of requests.

        Raises:
            ReconcileError: One could not be deleted.
        """
        return len(await _all(self._delete(owner, item) for item in deletes))

    async def annotate(self, owner: Manifest, annotates: Sequence[Annotate]) -> int:
        """Annotate objects, all at the same time; returns the number of requests. One that has gone is no error.

        Raises:
            ReconcileError: One could not be annotated.
        """
        return len(await _all(self._annotate(owner, item) for item in annotates))

    async def status(self, store: ObjectStore, resource: Manifest, status: Mapping[str, Any]) -> bool:
        """Write the resource's whole status where it differs; returns whether it did.

        Raises:
            ReconcileError: The API server would not have it.
            Gone: The resource is no longer there.
        """
        if not self.differs(store.type.kind, resource, status):
            return False
        metadata = resource["metadata"]
        wanted = orjson.loads(orjson.dumps(status))
        body = {
            "apiVersion": resource["apiVersion"],
            "kind": resource["kind"],
            # The uid makes it fail on a successor of the same name, whose state this is not; the version makes it fail
            # where the status was computed from a spec that is another one by now.
            "metadata": {k: metadata[k] for k in ("name", "namespace", "uid", "resourceVersion") if k in metadata},
            "status": wanted,
        }
        path = object_path(store.type, key_of(resource), "status")
        try:
            answer = await self._write("PUT", path, body, JSON, {"fieldManager": FIELD_MANAGER})
        except ApiError as error:
            if error.status == 404 or (error.status == 409 and "UID in precondition" in error.message):
                raise Gone from error
            raise typed_error(error, f"the status of {_name(resource)}") from error
        # The server may add defaults to what we sent; that is then not a difference either.
        made = answer.get("status") or {}
        if made != wanted:
            self._status[store.type.kind, key_of(resource)] = (metadata["uid"], _digest(wanted), made)
        store.record(answer)
        return True

    def differs(self, kind: str, resource: Manifest, status: Mapping[str, Any]) -> bool:
        """Whether this status is another one than the resource has."""
        observed = resource.get("status") or {}
        wanted = orjson.loads(orjson.dumps(status))
        written = resource["metadata"]["uid"], _digest(wanted), observed
        return bool(wanted != observed and self._status.get((kind, key_of(resource))) != written)

    def forget(self, kind: str, key: Key, *, last: bool) -> None:
        """A resource is gone; `last`: the last one of its namespace, which may thus be gone with all that was there."""
        self._status.pop((kind, key), None)
        if last:
            self._forget_namespace(key.namespace)

    def _forget_namespace(self, namespace: str) -> None:
        for item in [item for item in self._unwatched if item[1].namespace == namespace]:
            del self._unwatched[item]

    async def _apply(self, owner: Manifest, item: Apply) -> int:
        wanted, digest = desired(owner, item)
        key = key_of(wanted)
        if not item.type.watched:
            return await self._apply_unwatched(owner, item, wanted, digest)
        store = self._caches.store(item.type)
        if key in store:
            if store.settled(key) == digest:
                return 0
            if item.owned:
                check_owner(owner, item.type, key, store.owner(key))
            found = store.get(key)
            if _carries(found, wanted):
                store.settle(key, digest)
                return 0
            if found is not None and _must_be_replaced(item.type, found, wanted):
                await self._delete(owner, Delete(item.type, key, found["metadata"]["uid"]))
        path = object_path(item.type, key)
        new = key not in store and item.owned
        body = {**wanted, "metadata": {**wanted["metadata"], "resourceVersion": NEVER}} if new else wanted
        try:
            answer = await self._send(owner, item.type, body, "PATCH", path, APPLY_PATCH)
        except _AlreadyExists:
            # Ours, when the answer to an earlier apply was lost; else this fails.
            await self._check_free(owner, item.type, key)
            answer = await self._send(owner, item.type, wanted, "PATCH", path, APPLY_PATCH)
        store.record(answer, digest)
        return 1

    async def _apply_unwatched(self, owner: Manifest, item: Apply, wanted: Manifest, digest: str) -> int:
        key = key_of(wanted)
        now = self._clock()
        known, since = self._unwatched.get((item.type, key), ("", 0.0))
        if known == digest and now - since < (RESTORE_AFTER if item.lost else REAPPLY_AFTER):
            return 0
        await self._send(owner, item.type, wanted, "PATCH", object_path(item.type, key), APPLY_PATCH)
        self._unwatched[item.type, key] = (digest, now)
        return 1

    async def _create(self, owner: Manifest, item: Apply) -> int:
        """Create an object that is never changed."""
        wanted, digest = desired(owner, item)
        key = key_of(wanted)
        store = self._caches.store(item.type)
        if key in store:
            check_owner(owner, item.type, key, store.owner(key))
            return 0
        try:
            answer = await self._send(owner, item.type, wanted, "POST", collection_path(item.type, key.namespace))
        except _AlreadyExists:
            # Ours, when the answer to an earlier create was lost; the cache will see it, and so do we now.
            await self._check_free(owner, item.type, key)
            return 1
        store.record(answer, digest)
        return 1

    async def _check_free(self, owner: Manifest, type_: ObjectType, key: Key) -> None:
        """Fail when an object of this name exists that is not the owner's."""
        try:
            async with self._slots:
                found = await self._client.get(object_path(type_, key))
        except ApiError as error:
            if error.status == 404:
                return
            raise typed_error(error, f"{type_.kind} {key}") from error
        check_owner(owner, type_, key, controlling_owner(found))
        self._caches.store(type_).record(found)

    async def _annotate(self, owner: Manifest, item: Annotate) -> None:
        body = {"metadata": {"uid": item.uid, "annotations": dict(item.annotations)}}
        params = {"fieldManager": FIELD_MANAGER}
        try:
            answer = await self._write("PATCH", object_path(item.type, item.key), body, MERGE_PATCH, params)
        except ApiError as error:
            # Not found, or another object by now: either way the one that was meant is gone.
            if error.status == 404 or (error.status == 409 and "uid" in error.message.lower()):
                return
            raise typed_error(error, f"{item.type.kind} {item.key} of {_name(owner)}") from error
        self._caches.store(item.type).record(answer)

    async def _delete(self, owner: Manifest, item: Delete) -> None:
        body: dict[str, Any] = {"preconditions": {"uid": item.uid}, "propagationPolicy": "Background"}
        if item.grace_period_seconds is not None:
            body["gracePeriodSeconds"] = item.grace_period_seconds
        store = self._caches.store(item.type) if item.type.watched else None
        try:
            answer = await self._write("DELETE", object_path(item.type, item.key), body)
        except ApiError as error:
            # Not found, or another object by now: either way the one that was meant is gone.
            if error.status == 404 or (error.status == 409 and "uid" in error.message.lower()):
                if store is not None:
                    store.delete_requested(item.key, item.uid)
                return
            raise typed_error(error, f"{item.type.kind} {item.key} of {_name(owner)}") from error
        if store is None:
            return
        metadata = answer.get("metadata", {})
        stays = metadata.get("deletionGracePeriodSeconds") != 0 or metadata.get("finalizers")
        if metadata.get("deletionTimestamp") and stays:
            store.record(answer)
        else:
            store.delete_requested(item.key, item.uid)

    async def _send(
        self,
        owner: Manifest,
        type_: ObjectType,
        wanted: Manifest,
        method: str,
        path: str,
        content_type: str = JSON,
    ) -> Manifest:
        """Write a child; failures come back typed."""
        params = _APPLY_PARAMS if method == "PATCH" else {"fieldManager": FIELD_MANAGER}
        try:
            return await self._write(method, path, wanted, content_type, params)
        except ApiError as error:
            if error.caused_by("NamespaceTerminating"):
                raise Gone from error
            if error.status == 404 and error.details.get("kind") == "namespaces":
                raise Gone from error
            if error.status == 409 and error.reason == "AlreadyExists":
                raise _AlreadyExists from error
            if error.status == 409 and wanted["metadata"].get("resourceVersion") == NEVER:
                raise _AlreadyExists from error
            raise typed_error(error, f"{type_.kind} {key_of(wanted)} of {_name(owner)}") from error

    async def _write(
        self,
        method: str,
        path: str,
        body: Any,
        content_type: str = JSON,
        params: Mapping[str, str] | None = None,
    ) -> Manifest:
        async with self._slots:
            return await self._client.request(method, path, params=params, body=body, content_type=content_type)


class _AlreadyExists(Exception):
    """A create, or an apply that was to be one, found the name taken."""


def desired(owner: Manifest, item: Apply) -> tuple[Manifest, str]:
    """The whole manifest to write for a child, and its hash.

    Type, namespace, managed labels, the controlling owner reference and the hash annotation are added here, so that
    builders need not.
    """
    given = item.manifest
    metadata = dict(given.get("metadata") or {})
    if item.type.namespaced:
        metadata.setdefault("namespace", owner["metadata"]["namespace"])
    metadata["labels"] = {**(metadata.get("labels") or {}), **MANAGED_LABELS}
    if item.owned:
        metadata["ownerReferences"] = [owner_reference(owner)]
    manifest = {**given, "apiVersion": item.type.api_version, "kind": item.type.kind, "metadata": metadata}
    digest = _digest(manifest)
    metadata["annotations"] = {**(metadata.get("annotations") or {}), APPLIED: digest}
    return manifest, digest


def owner_reference(owner: Manifest) -> dict[str, Any]:
    """The reference of a controlling owner."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _digest(value: Any) -> str:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=10).hexdigest()


async def _all(tasks: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, run at the same time to their end; the gravest failure is raised only then."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        # An unexpected error says more than one that the API server reported.
        raise min(failures, key=lambda failure: isinstance(failure, (ReconcileError, Gone)))
    return [result for result in results if not isinstance(result, BaseException)]


def _carries(observed: Manifest | None, wanted: Manifest) -> bool:
    if observed is None:
        return False
    applied = (observed["metadata"].get("annotations") or {}).get(APPLIED)
    return applied == wanted["metadata"]["annotations"][APPLIED] and carries(observed, wanted)


def _must_be_replaced(type_: ObjectType, observed: Manifest, wanted: Manifest) -> bool:
    field = REPLACED.get(type_)
    return field is not None and observed.get(field) != wanted.get(field)


def _name(manifest: Manifest) -> str:
    return f"{manifest['kind']} {key_of(manifest)}"


def check_owner(owner: Manifest, type_: ObjectType, key: Key, holder: Owner | None) -> None:
    """Fail when an object that we want to write is somebody else's."""
    if holder is not None and holder.uid == owner["metadata"]["uid"]:
        return
    if holder is None:
        raise WaitError(
            "NameConflict",
            f"{type_.kind} {key} exists already and was not made by Headrace; delete it, or give "
            f"{_name(owner)} another name",
        )
    if holder.kind == owner["kind"] and holder.key == key_of(owner):
        raise WaitError(
            "WaitingForCleanup",
            f"{type_.kind} {key} still belongs to an earlier {holder.kind} of this name and is being deleted",
            after=timedelta(seconds=2),
        )
    raise WaitError(
        "NameConflict",
        f"{type_.kind} {key} belongs to {holder.kind} {holder.key}; give {_name(owner)} another name",
    )


_QUOTA = re.compile(r"exceeded quota: (\S+), requested: (\S+), used: (\S+), limited: (\S+)")


def _quota(message: str) -> str:
    """The API server's words on a quota, with what is missing; as they are where they are others."""
    match = _QUOTA.search(message)
    if match is None:
        return message
    asked, used, limit = (dict(item.split("=", 1) for item in text.split(",")) for text in match.groups()[1:])
    try:
        short = [
            f"{name} is short of {missing:g} (asks for {asked[name]}, {used[name]} of {limit[name]} are used)"
            for name in asked
            if (missing := parse_quantity(asked[name]) + parse_quantity(used[name]) - parse_quantity(limit[name])) > 0
        ]
    except (KeyError, ValueError):  # other words than those known: the whole message says it too
        return message
    return f"ResourceQuota {match[1]}: {', '.join(short)}" if short else message


def typed_error(error: ApiError, what: str) -> ReconcileError:
    """The typed error of a refused request."""
    if error.transient:
        return TransientApiError("ApiRequestFailed", f"Writing {what} failed and will be tried again: {error}")
    if error.status == 403 and "exceeded quota" in error.message:
        return WaitError(
            "QuotaExceeded",
            f"{what} does not fit into the namespace's quota: {_quota(error.message)}; raise the quota or free some of "
            "it",
        )
    if error.status == 403 and "failed quota" in error.message:
        return WaitError(
            "QuotaNeedsResources",
            f"The namespace's quota counts what {what} does not say: {error.message}; set it in resources.requests or "
            "resources.limits",
            after=timedelta(minutes=5),
        )
    if error.status == 403 and "PodSecurity" in error.message:
        return TerminalError(
            "PodSecurityViolation",
            f"Pod Security refuses {what}: {error.message}; change the pod's settings or the namespace's level",
        )
    if error.status == 403:
        return WaitError(
            "Forbidden",
            f"The API server does not let Headrace write {what}: {error.message}; if this names a missing permission, "
            "install the chart of this release again, otherwise ask whoever runs the policy that refused it",
            after=timedelta(minutes=1),
        )
    if error.status == 404:
        return WaitError("NotFound", f"{what} cannot be written: {error.message}", after=timedelta(seconds=30))
    return TerminalError(
        "InvalidObject",
        f"The API server refuses {what}: {error.message}; correct the field of the spec that it comes from",
    )
