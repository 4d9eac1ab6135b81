"""The TrainingJob kind as the runtime sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from controllers.runtime.admission import Known, Reference, Verdict
from controllers.runtime.cache import CacheSet
from controllers.runtime.client import ApiClient
from controllers.runtime.controller import Caches, PolicyRule
from controllers.runtime.namespace import NAMESPACE_RULES, NAMESPACE_TYPES
from controllers.runtime.objects import NODE, POD, SERVICE, Key, ObjectType
from controllers.runtime.plan import Plan
from controllers.runtime.settings import Settings
from controllers.runtime.store import ObjectStore
from controllers.trainingjob import admission, gang, observed, plan, served
from controllers.trainingjob.gangqueue import BOUND_POD, PRIORITY_CLASS, GangQueue
from controllers.trainingjob.names import JOB
from headrace.api.trainingjob import TrainingJob

logger = logging.getLogger(__name__)


class TrainingJobController:
    """Controller[TrainingJob, Observed] and Reviewing[TrainingJob]."""

    resource = TrainingJob
    rules: Sequence[PolicyRule] = (
        *NAMESPACE_RULES,
        # Which of them there are depends on the cluster's release: owned where they are served.
        PolicyRule((gang.GROUP,), ("podgroups", "workloads"), ("list", "watch", "get", "create", "patch", "delete")),
        PolicyRule((gang.GROUP,), ("priorityclasses",), ("list", "watch")),
        PolicyRule((JOB.group,), (JOB.plural,), ("delete",)),  # ttlSecondsAfterFinished
    )
    reviews: Sequence[ObjectType] = admission.REVIEWS

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gang_api: gang.GangAPI | None = None
        self._queue: GangQueue | None = None
        self._queues = False

    @property
    def owns(self) -> Sequence[ObjectType]:
        """Child types."""
        native = [self._gang_api.type] if self._gang_api is not None else []
        return (SERVICE, POD, *native, *NAMESPACE_TYPES)

    @property
    def reads(self) -> Sequence[ObjectType]:
        """Types that are nobody's children."""
        return (NODE, BOUND_POD, PRIORITY_CLASS) if self._queues else (NODE,)

    async def discover(self, client: ApiClient) -> None:
        """Find out what gang scheduling the cluster offers."""
        wanted = self._settings.gang_scheduling
        self._gang_api = await gang.discover(client) if wanted == "Auto" else None
        self._queues = wanted == "Queue" or (wanted == "Auto" and self._gang_api is None)
        if self._gang_api is not None:
            logger.info("gangs are scheduled by the cluster (%s)", self._gang_api.type.api_version)
        elif self._queues:
            logger.info("gangs are queued by the operator")

    def attach(self, resources: ObjectStore, caches: CacheSet, wake: Callable[[Key], None]) -> None:
        """Set up the queue, where the cluster schedules no gangs."""
        if self._queues:
            weights = dict(self._settings.queue_weights)
            self._queue = GangQueue(resources, caches, wake, lambda: datetime.now(UTC), weights)

    def gather(self, resource: TrainingJob, caches: Caches) -> observed.Observed:
        """All that the plan looks at."""
        admission = None
        if self._queue is not None and gang.kueue_queue(resource) is None:
            admission = self._queue.admission(Key(resource.metadata.namespace, resource.metadata.name))
        return observed.gather(resource, caches, self._gang_api, admission)

    def plan(self, resource: TrainingJob, observed: observed.Observed, now: datetime) -> Plan:
        """What to do."""
        if resource.spec.topology.type == "ParameterServer":
            return served.plan(resource, observed, now, self._settings)
        return plan.plan(resource, observed, now, self._settings)

    def references(self, resource: TrainingJob, *, created: bool) -> Sequence[Reference]:
        """What its review looks at."""
        return admission.references(resource, created=created)

    def review(self, resource: TrainingJob, known: Known, *, created: bool) -> Verdict:
        """What is said of it when it is applied."""
        return admission.review(resource, known, created=created)
