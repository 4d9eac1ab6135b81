"""The TrainingJob kind as the runtime sees it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from controllers.runtime.admission import Known, Reference, Verdict
from controllers.runtime.client import ApiClient
from controllers.runtime.controller import Caches, PolicyRule
from controllers.runtime.namespace import NAMESPACE_RULES, NAMESPACE_TYPES
from controllers.runtime.objects import NODE, POD, SERVICE, ObjectType
from controllers.runtime.plan import Plan
from controllers.runtime.settings import Settings
from controllers.trainingjob import admission, gang, observed, plan, served
from controllers.trainingjob.names import JOB
from headrace.api.trainingjob import TrainingJob


class TrainingJobController:
    """Controller[TrainingJob, Observed] and Reviewing[TrainingJob]."""

    resource = TrainingJob
    reads: Sequence[ObjectType] = (NODE,)
    rules: Sequence[PolicyRule] = (
        *NAMESPACE_RULES,
        # Which of them there are depends on the cluster's release: owned where they are served.
        PolicyRule((gang.GROUP,), ("podgroups", "workloads"), ("list", "watch", "get", "create", "patch", "delete")),
        PolicyRule((JOB.group,), (JOB.plural,), ("delete",)),  # ttlSecondsAfterFinished
    )
    reviews: Sequence[ObjectType] = admission.REVIEWS

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gang_api: gang.GangAPI | None = None

    @property
    def owns(self) -> Sequence[ObjectType]:
        """Child types."""
        native = [self._gang_api.type] if self._gang_api is not None else []
        return (SERVICE, POD, *native, *NAMESPACE_TYPES)

    async def discover(self, client: ApiClient) -> None:
        """Find out what gang scheduling the cluster offers."""
        self._gang_api = await gang.discover(client)

    def gather(self, resource: TrainingJob, caches: Caches) -> observed.Observed:
        """All that the plan looks at."""
        return observed.gather(resource, caches, self._gang_api)

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
