"""One reconcile of one resource: gather, plan, apply, and what is said when that does not succeed.

The resource comes from the store that the watch keeps, the children from the watch caches; nothing is read from the
API server here. However a reconcile ends, the resource tells: an error becomes the Ready condition (False, with the
error's reason and message) and, when that is news, a Warning Event. Nothing is swallowed and nothing is retried
silently for ever.

How it goes on is the outcome: an error that may pass is tried again with exponential backoff, one that waits for
something after the time it names, one that only a new spec can mend not at all. An exception that nobody foresaw is a
bug: its traceback goes to the log with the reconcile's id, the condition says where to look, and it is tried again
with backoff.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, Literal, TypeVar

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from controllers.runtime.allowance import Allowance
from controllers.runtime.apply import Applier, Gone, TransientApiError
from controllers.runtime.client import NotLeader
from controllers.runtime.controller import Caches, Controller
from controllers.runtime.errors import ReconcileError, RetryError, TerminalError, WaitError
from controllers.runtime.events import EventRecorder
from controllers.runtime.logs import log_fields
from controllers.runtime.objects import Key, Manifest
from controllers.runtime.plan import Event, Plan
from controllers.runtime.store import ObjectStore
from headrace.api import Resource
from headrace.api.meta import rfc3339

logger = logging.getLogger(__name__)

COMPLETENESS: Final = (3.0, 20)
"""Writes per second, and at once, that only say how far resources are, in all of a kind."""
PATIENCE: Final = 3
"""Failures in a row after which a transient error of the API server is said in the resource's status."""

R = TypeVar("R", bound=Resource)
O = TypeVar("O")  # noqa: E741

Result = Literal["success", "requeue_after", "wait", "retry", "terminal", "error"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reconcile ended.

    Attributes:
        result: success; requeue_after (looked at again after `after`); wait (for something named, likewise);
            retry (with backoff); terminal (not before the spec changes); error (a bug; with backoff).
        writes: Requests that it wrote with.
        after: When to look again, for requeue_after and wait.
    """

    result: Result
    writes: int = 0
    after: timedelta | None = None


class Reconciler(Generic[R, O]):
    """Reconciles the resources of one kind."""

    def __init__(
        self,
        controller: Controller[R, O],
        resources: ObjectStore,
        caches: Caches,
        applier: Applier,
        events: EventRecorder,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        allowance: Allowance | None = None,
    ) -> None:
        self.controller = controller
        self._resources = resources
        self._caches = caches
        self._applier = applier
        self._events = events
        self._now = now
        self._allowance = allowance or Allowance(*COMPLETENESS)

    async def reconcile(self, key: Key, failures: int = 0) -> Outcome:
        """Reconcile once; `failures` is how often in a row that failed before."""
        manifest = self._resources.get(key)
        # Children go with their owner by garbage collection.
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            return Outcome("success")
        kind = self.controller.resource.info.kind
        with log_fields(kind=kind, namespace=key.namespace, name=key.name, reconcileID=uuid.uuid4().hex):
            try:
                return await self._reconcile(manifest)
            except (Gone, NotLeader) as error:
                logger.debug("stopped: %s", error.__cause__ or error)
                return Outcome("success")
            except ReconcileError as error:
                return await self._unsuccessful(manifest, error, failures)
            except Exception:
                logger.exception("unexpected error")
                message = (
                    "An internal error stopped this reconcile; it is tried again. Please report it with the lines of "
                    f"the operator's log that carry kind={kind}, namespace={key.namespace}, name={key.name}"
                )
                await self._say(manifest, "InternalError", message)
                return Outcome("error")

    async def _reconcile(self, manifest: Manifest) -> Outcome:
        resource = parse(self.controller.resource, manifest)
        observed = self.controller.gather(resource, self._caches)
        plan = self.controller.plan(resource, observed, self._now())
        writes = await self._applier.annotate(manifest, plan.annotates)
        writes += await self._applier.delete(manifest, plan.deletes)
        writes += await self._applier.apply(manifest, plan.applies)
        again = plan.requeue_after
        if self._must_wait(manifest, plan):
            again = min(filter(None, (plan.status_can_wait, again)))
        else:
            if plan.status is not None:
                writes += await self._applier.status(self._resources, manifest, plan.status)
            for event in plan.events:
                self._events.emit(manifest, event)
        with log_fields(**plan.labels):
            logger.log(logging.INFO if writes else logging.DEBUG, "reconciled with %d writes", writes)
        if again is not None:
            return Outcome("requeue_after", writes, again)
        return Outcome("success", writes)

    def _must_wait(self, manifest: Manifest, plan: Plan) -> bool:
        """Whether what the plan says for completeness has no room now."""
        if plan.status is None or plan.status_can_wait is None:
            return False
        return self._applier.differs(self.controller.resource.info.kind, manifest, plan.status) and (
            not self._allowance.take()
        )

    async def _unsuccessful(self, manifest: Manifest, error: ReconcileError, failures: int) -> Outcome:
        terminal, waiting = isinstance(error, TerminalError), isinstance(error, WaitError)
        logger.log(logging.INFO if waiting else logging.WARNING, "%s: %s", error.reason, error.message)
        # One refused request is no news to the resource's owner; the status should not flap with it.
        if not isinstance(error, TransientApiError) or failures + 1 >= PATIENCE:
            try:
                await self._say(manifest, error.reason, error.message)
            except (Gone, NotLeader):
                return Outcome("success")
        if isinstance(error, WaitError):
            return Outcome("wait", after=error.after)
        if terminal:
            return Outcome("terminal")
        assert isinstance(error, RetryError), f"{type(error).__name__} is none of RetryError, WaitError, TerminalError"
        return Outcome("retry")

    async def _say(self, manifest: Manifest, reason: str, message: str) -> None:
        """Set Ready to False and keep the rest of the status; an Event when that is news."""
        # The write that failed may have been the status itself, so start from what is stored now.
        current = self._resources.get(Key(manifest["metadata"].get("namespace") or "", manifest["metadata"]["name"]))
        if current is None or current["metadata"]["uid"] != manifest["metadata"]["uid"]:
            return
        status, news = with_ready_false(current, reason, message, self._now())
        try:
            await self._applier.status(self._resources, current, status)
        except ReconcileError as error:
            logger.warning("could not write the status: %s", error.message)
            return
        except Gone:
            return
        if news:
            self._events.emit(current, Event("Warning", reason, message))


def parse(model: type[R], manifest: Manifest) -> R:
    """The resource as its model.

    Fields that the model does not know are left out. The API server stores none that the CRD does not know, so they are
    a newer release's: while that is rolled out, its CRD writes its defaults into every resource. A status that cannot
    be read is left out too: it is ours to write again.

    Raises:
        TerminalError: InvalidSpec, naming each wrong field, what was found and what is right.
    """
    try:
        return model.model_validate(manifest)
    except ValidationError as error:
        unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
        wrong = [item for item in error.errors() if item["type"] != "extra_forbidden"]
        problems = [item for item in wrong if item["loc"][:1] != ("status",)]
        if not problems:
            return parse(model, _without(manifest, [*unknown, *([("status",)] if wrong else [])]))
        parts = [f"{_path(item['loc'])}: {_words(item)}" for item in problems[:5]]
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise TerminalError("InvalidSpec", f"Correct these fields: {'; '.join(parts)}{more}") from error


def _without(manifest: Mapping[str, Any], fields: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy without these fields."""
    copy: dict[str, Any] = orjson.loads(orjson.dumps(manifest))
    for *path, last in fields:
        place: Any = copy
        for part in path:
            # Paths through a union name its variant too, which is no field.
            place = place[part] if isinstance(part, int) or part in place else place
        place.pop(last, None)
    return copy


def with_ready_false(manifest: Manifest, reason: str, message: str, now: datetime) -> tuple[dict[str, Any], bool]:
    """The resource's status with Ready False for this reason, and whether that says anything new."""
    status: dict[str, Any] = dict(manifest.get("status") or {})
    generation = manifest["metadata"].get("generation", 0)
    before: Sequence[Mapping[str, Any]] = status.get("conditions") or ()
    earlier = next((item for item in before if item["type"] == "Ready"), None)
    same_status = earlier is not None and earlier["status"] == "False"
    ready = {
        "type": "Ready",
        "status": "False",
        "reason": reason,
        "message": message[:32768],
        "lastTransitionTime": earlier["lastTransitionTime"] if same_status and earlier is not None else rfc3339(now),
        "observedGeneration": generation,
    }
    news = earlier is None or any(earlier.get(field) != ready[field] for field in ("status", "reason", "message"))
    others = [dict(item) for item in before if item["type"] != "Ready"]
    status["conditions"] = [ready, *others] if earlier is None or before[0] is earlier else [*others, ready]
    status["observedGeneration"] = generation
    return status, news


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _words(problem: ErrorDetails) -> str:
    # A rule of ours says itself what it found; its input is the whole object around the field.
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{problem['msg']} (found {_short(problem['input'])})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
