"""The TrainingJob kind as the runtime sees it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from controllers.runtime.admission import Known, Reference, Verdict
from controllers.runtime.controller import Caches, PolicyRule
from controllers.runtime.namespace import NAMESPACE_RULES, NAMESPACE_TYPES
from controllers.runtime.objects import NODE, POD, SERVICE, ObjectType
from controllers.runtime.plan import Plan
from controllers.runtime.settings import Settings
from controllers.trainingjob import admission, observed, plan
from headrace.api.trainingjob import TrainingJob


class TrainingJobController:
    """Controller[TrainingJob, Observed] and Reviewing[TrainingJob]."""

    resource = TrainingJob
    owns: Sequence[ObjectType] = (SERVICE, POD, *NAMESPACE_TYPES)
    reads: Sequence[ObjectType] = (NODE,)
    rules: Sequence[PolicyRule] = NAMESPACE_RULES
    reviews: Sequence[ObjectType] = admission.REVIEWS

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def gather(self, resource: TrainingJob, caches: Caches) -> observed.Observed:
        """All that the plan looks at."""
        return observed.gather(resource, caches)

    def plan(self, resource: TrainingJob, observed: observed.Observed, now: datetime) -> Plan:
        """What to do."""
        return plan.plan(resource, observed, now, self._settings)

    def references(self, resource: TrainingJob, *, created: bool) -> Sequence[Reference]:
        """What its review looks at."""
        return admission.references(resource, created=created)

    def review(self, resource: TrainingJob, known: Known, *, created: bool) -> Verdict:
        """What is said of it when it is applied."""
        return admission.review(resource, known, created=created)
