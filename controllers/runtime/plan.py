"""A Plan: everything that one reconcile of one resource wants done, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from controllers.runtime.objects import Key, Manifest, ObjectType


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of one object, with every field that Headrace wants to own.

    Attributes:
        owned: The resource becomes the controlling owner, so that the object goes with it. False for what a whole
            namespace shares.
        lost: Something waits for the object, so it is not there, whatever was applied before. Of use for types that
            are not watched.
    """

    type: ObjectType
    manifest: Manifest
    owned: bool = True
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion of one object.

    Attributes:
        uid: Only the object with this uid is deleted, so a stale cache never hits its successor.
        grace_period_seconds: None leaves it to the object; 0 removes a pod of a dead node at once.
    """

    type: ObjectType
    key: Key
    uid: str
    grace_period_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Annotate:
    """Annotations of one object that is there, and nothing else of it: how running pods are told something.

    Attributes:
        uid: Only the object with this uid is changed.
        annotations: Values by name; None takes one away.
    """

    type: ObjectType
    key: Key
    uid: str
    annotations: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about the resource. Events with the same fields are counted, not repeated.

    Attributes:
        reason: CamelCase, searchable.
        note: For a person: what happened, which object, what to do.
        action: What the controller did, CamelCase.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    note: str
    action: str = "Reconcile"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one reconcile wants done, in this order: annotates, deletes, applies (in sequence order), status, Events.

    Attributes:
        status: The whole status in API form (camelCase), or None to leave it. Written only where it differs.
        events: Emitted once, after the status was written; a plan repeats an Event only when it means it, so
            they are tied to transitions.
        status_can_wait: The status and the events say nothing that changes a verdict. While many resources have such
            things to say, it is tried again after this time.
        requeue_after: When to look again without any event; None waits for events and the periodic resync.
    """

    applies: Sequence[Apply] = ()
    deletes: Sequence[Delete] = ()
    status: dict[str, Any] | None = None
    events: Sequence[Event] = ()
    status_can_wait: timedelta | None = None
    requeue_after: timedelta | None = None
    annotates: Sequence[Annotate] = ()
    labels: dict[str, str] = field(default_factory=dict)
    """Extra fields for the log line of this reconcile."""
