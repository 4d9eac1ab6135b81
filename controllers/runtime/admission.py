"""What is said at `kubectl apply`, beyond what the CRD's schema and CEL rules can tell.

A resource is read as its model, the single source of validation, and refused with the field, what was found and the
remedy where it does not fit. A kind that has more to say (`Reviewing`) names the objects that matter and judges by
them: a name that is taken is refused, something that is not there yet is a warning, since GitOps may apply things in
any order.

Objects are read from the API server, since neither a standby nor a cache of the platform's own children knows what
other people made; nodes come from the leader's cache. Whatever cannot be read in time is unknown, and about what is
unknown nothing is said. Reviews write nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from controllers.runtime.apply import check_owner
from controllers.runtime.cache import CacheSet
from controllers.runtime.client import METADATA, ApiClient, ApiError, collection_path, object_path
from controllers.runtime.controller import Controller
from controllers.runtime.errors import TerminalError, WaitError
from controllers.runtime.objects import SECRET, Key, Manifest, ObjectType
from controllers.runtime.reconciler import parse
from controllers.runtime.store import controlling_owner
from headrace.api import Resource
from headrace.api.meta import parse_quantity

logger = logging.getLogger(__name__)

READ_SECONDS: Final = 2.0
"""Time for all reads of one review; the API server gives up on a webhook after 5 s."""
LIST_AGE: Final = 10.0
"""Seconds for which a list (nodes, on a standby) serves further reviews, as when a hundred jobs are applied at once."""
_PAGE: Final = "500"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a review says; each a sentence with the field, what was found, and what to do.

    Attributes:
        refusals: Why the resource is not taken; none means that it is.
        warnings: What will keep it from working as things are now.
    """

    refusals: Sequence[str] = ()
    warnings: Sequence[str] = ()


class Reference(NamedTuple):
    """An object that a review looks at; without a name every object of the type."""

    type: ObjectType
    key: Key = Key("", "")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the references.

    Attributes:
        objects: The object, or None for one that surely does not exist; unknown ones are left out.
        lists: Every object of a type; unknown ones are left out.
    """

    objects: Mapping[Reference, Manifest | None] = field(default_factory=dict)
    lists: Mapping[ObjectType, Sequence[Manifest]] = field(default_factory=dict)

    def get(self, type_: ObjectType, key: Key) -> Manifest | None:
        """The object; None when there is none or nothing is known of it."""
        return self.objects.get(Reference(type_, key))

    def is_missing(self, type_: ObjectType, key: Key) -> bool:
        """Whether there surely is no such object."""
        return self.objects.get(Reference(type_, key), {}) is None

    def all(self, type_: ObjectType) -> Sequence[Manifest] | None:
        """Every object of the type; None when they are not known."""
        return self.lists.get(type_)


R = TypeVar("R", bound=Resource)
R_contra = TypeVar("R_contra", bound=Resource, contravariant=True)


@runtime_checkable
class Reviewing(Protocol[R_contra]):
    """What a controller adds whose kind has more to say at admission than its model.

    Attributes:
        reviews: Types that reviews read (RBAC: get, of cluster-scoped types list; Secrets aside).
    """

    reviews: Sequence[ObjectType]

    def references(self, resource: R_contra, *, created: bool) -> Sequence[Reference]:
        """What `review` wants to know; `created`: the resource does not exist yet."""
        ...

    def review(self, resource: R_contra, known: Known, *, created: bool) -> Verdict:
        """Judge a resource that its model accepts; reads its arguments only."""
        ...


class Reader:
    """Reads what reviews refer to."""

    def __init__(
        self,
        client: ApiClient,
        *,
        unreadable: Collection[ObjectType] = (SECRET,),
        seconds: float = READ_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            client: The API server.
            unreadable: Types that the operator may not read; nothing is known of them.
            seconds: Time for all reads of one review.
            clock: Age of lists.
        """
        self.caches: CacheSet | None = None
        """The caches of the process that leads."""
        self._client = client
        self._unreadable = unreadable
        self._seconds = seconds
        self._clock = clock
        self._lists: dict[ObjectType, tuple[float, Sequence[Manifest]]] = {}

    async def read(self, references: Iterable[Reference]) -> Known:
        """What can be known of these within the time; fails at nothing."""
        wanted = [item for item in dict.fromkeys(references) if item.type not in self._unreadable]
        objects: dict[Reference, Manifest | None] = {}
        lists: dict[ObjectType, Sequence[Manifest]] = {}
        await asyncio.gather(
            *(self._get(item, objects) if item.key.name else self._all(item.type, lists) for item in wanted)
        )
        return Known(objects, lists)

    async def _get(self, item: Reference, found: dict[Reference, Manifest | None]) -> None:
        # Of a Secret nobody needs to see more than that it is there.
        accept = METADATA if item.type == SECRET else None
        try:
            path = object_path(item.type, item.key)
            found[item] = await self._client.request("GET", path, accept=accept, seconds=self._seconds)
        except ApiError as error:
            if error.status == 404 and error.reason == "NotFound":
                found[item] = None
            else:
                logger.info("a review goes on without %s %s: %s", item.type.kind, item.key, error)

    async def _all(self, type_: ObjectType, found: dict[ObjectType, Sequence[Manifest]]) -> None:
        if self.caches is not None and self.caches.holds(type_):
            found[type_] = self.caches.all(type_)
            return
        now = self._clock()
        since, known = self._lists.get(type_, (-LIST_AGE, ()))
        if now - since < LIST_AGE:
            found[type_] = known
            return
        try:
            async with asyncio.timeout(self._seconds):
                items = await self._list(type_)
        except (ApiError, TimeoutError) as error:
            logger.info("a review goes on without the list of %s: %s", type_.plural, error or "no answer in time")
            return
        self._lists[type_] = (now, items)
        found[type_] = items

    async def _list(self, type_: ObjectType) -> list[Manifest]:
        items: list[Manifest] = []
        params = {"limit": _PAGE}
        while True:
            page = await self._client.get(collection_path(type_), params)
            items += page["items"]
            if not page["metadata"].get("continue"):
                return items
            params["continue"] = page["metadata"]["continue"]


async def review(
    controller: Controller[Any, Any], reader: Reader, manifest: Manifest, before: Manifest | None
) -> Verdict:
    """Judge a resource as it is to be.

    Args:
        controller: Of its kind.
        reader: For what it refers to.
        manifest: The resource.
        before: As it is now; None for one that is created.
    """
    if manifest["metadata"].get("deletionTimestamp"):
        return Verdict()
    # Labels, annotations and finalizers of a resource can be changed whatever an earlier release let into its spec.
    if before is not None and before.get("spec") == manifest.get("spec"):
        return Verdict()
    try:
        resource = parse(controller.resource, manifest)
    except TerminalError as error:
        return Verdict(refusals=[error.message])
    if not isinstance(controller, Reviewing):
        return Verdict()
    created = before is None
    known = await reader.read(controller.references(resource, created=created))
    return controller.review(resource, known, created=created)


def conflicts(resource: Resource, known: Known, children: Iterable[Reference]) -> list[str]:
    """Refusals for children whose names are somebody else's."""
    metadata = resource.metadata
    owner = {
        "kind": resource.info.kind,
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
    }
    found: list[str] = []
    for type_, key in children:
        held = known.get(type_, key)
        if held is None or held["metadata"].get("deletionTimestamp"):
            continue
        try:
            check_owner(owner, type_, key, controlling_owner(held))
        except WaitError as error:
            # An earlier resource of the same name is being cleaned up: that passes by itself.
            if error.reason == "NameConflict":
                found.append(f"metadata.name: {error.message}")
    return found


def missing_secret(known: Known, namespace: str, name: str, path: str, keys: str) -> list[str]:
    """A warning when a Secret that the field `path` names does not exist."""
    if not known.is_missing(SECRET, Key(namespace, name)):
        return []
    return [
        f"{path}: Secret {name!r} does not exist in namespace {namespace}; the pods wait until it does: create it, "
        f"with {keys}"
    ]


def unoffered(known: Known, type_: ObjectType, resource: str, count: float, path: str) -> list[str]:
    """A warning when no node offers this much of an extended resource, as things are now."""
    nodes = known.all(type_)
    if nodes is None:
        return []
    offers = {
        str(node["metadata"]["name"]): parse_quantity(
            (node.get("status", {}).get("allocatable") or {}).get(resource, 0)
        )
        for node in nodes
    }
    best = max(offers, key=lambda name: (offers[name], name), default="")
    if not best or offers[best] == 0:
        return [
            f"{path}: no node of this cluster offers {resource} now, so the pods wait for one: add such a node with "
            "its device plugin, or leave the field out"
        ]
    if offers[best] < count:
        return [
            f"{path}: a pod asks for {count:g} {resource} and the largest node, {best}, offers {offers[best]:g}: ask "
            f"for {offers[best]:g} or fewer, or add a larger node"
        ]
    return []
