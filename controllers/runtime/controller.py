"""The interface of a kind: what it watches, what it may do, and its two pure functions.

A kind is one folder with the same few rooms: ``observed.py`` (gather), ``plan.py`` (the rules), ``builders.py``
(a function per child object) and ``controller.py`` (this protocol, filled in). ``gather`` reads caches only,
``plan`` reads its arguments only; neither does I/O, so every rule is a table test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar, runtime_checkable

from controllers.runtime.cache import CacheSet
from controllers.runtime.client import ApiClient
from controllers.runtime.objects import Key, Manifest, ObjectType
from controllers.runtime.plan import Plan
from controllers.runtime.store import ObjectStore
from headrace.api import Resource


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One RBAC rule of the operator's ClusterRole, as the controller needs it; the chart is generated from these."""

    api_groups: tuple[str, ...]
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    resource_names: tuple[str, ...] = ()


class Caches(Protocol):
    """Read-only view of the watch caches. Returned manifests are shared: never modify them."""

    def owned(self, type_: ObjectType, namespace: str, owner_uid: str) -> Sequence[Manifest]:
        """Objects of the type that belong to the resource of this namespace and uid, by name.

        An object belongs to the uid in its label `headrace.dev/owner-uid` where that is set (pods of a Deployment),
        else to its controlling owner. One in another namespace never does, whatever its labels say.
        """
        ...

    def get(self, type_: ObjectType, key: Key) -> Manifest | None:
        """One object, or None when the cache has none."""
        ...

    def all(self, type_: ObjectType) -> Sequence[Manifest]:
        """Every object of the type (Nodes)."""
        ...

    def patience(self) -> timedelta:
        """How long news that change no verdict may be gathered before they are written: the longer, the more the API
        server has to do.
        """
        ...


R = TypeVar("R", bound=Resource)
O = TypeVar("O")  # noqa: E741


class Controller(Protocol[R, O]):
    """What the runtime needs to know of a kind.

    Attributes:
        resource: The API model.
        owns: Watched child types; a change of a child puts its owner on the queue.
        reads: Watched types that are nobody's children, such as Node; their changes wake nobody by themselves,
            a plan that waits for one asks to be looked at again.
        rules: RBAC beyond what the runtime derives from `owns`, `reads` and the kind itself
            (get/list/watch of all, patch/create/delete of owned types, update of the kind's status).
    """

    resource: type[R]
    rules: Sequence[PolicyRule]

    @property
    def owns(self) -> Sequence[ObjectType]: ...

    @property
    def reads(self) -> Sequence[ObjectType]: ...

    def gather(self, resource: R, caches: Caches) -> O:
        """All that the plan looks at, as one plain value."""
        ...

    def plan(self, resource: R, observed: O, now: datetime) -> Plan:
        """What to do.

        Raises:
            controllers.runtime.errors.TerminalError: The spec cannot work; wait for it to change.
            controllers.runtime.errors.WaitError: Something named must come first.
        """
        ...


@runtime_checkable
class Overseeing(Protocol):
    """A kind whose resources share something, so that one of them has to know of the others."""

    def attach(self, resources: ObjectStore, caches: CacheSet, wake: Callable[[Key], None]) -> None:
        """Called once, before anything is reconciled.

        Args:
            resources: All resources of the kind.
            caches: All caches.
            wake: Puts a resource on the queue.
        """
        ...


@runtime_checkable
class Discovering(Protocol):
    """A kind that has to know what the API server serves before `owns` and `reads` are looked at."""

    async def discover(self, client: ApiClient) -> None:
        """Ask the API server.

        Raises:
            controllers.runtime.client.ApiError: It does not say.
        """
        ...
