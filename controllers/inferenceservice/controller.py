"""The InferenceService kind as the runtime sees it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from controllers.inferenceservice import admission
from controllers.inferenceservice import plan as rooms
from controllers.inferenceservice.models import TRAINING_JOB
from controllers.inferenceservice.observed import CHILDREN, Observed, gather
from controllers.runtime.admission import Known, Reference, Verdict
from controllers.runtime.controller import Caches, PolicyRule
from controllers.runtime.namespace import NAMESPACE_RULES, NAMESPACE_TYPES
from controllers.runtime.objects import POD, ObjectType
from controllers.runtime.plan import Plan
from controllers.runtime.settings import Settings
from headrace.api import InferenceService


class InferenceServiceController:
    """Controller[InferenceService, Observed] and Reviewing[InferenceService].

    Pods belong to it by the labels on their template (`OWNER_UID`), not by an owner reference.
    """

    resource = InferenceService
    owns: Sequence[ObjectType] = (*NAMESPACE_TYPES, *CHILDREN, POD)
    reads: Sequence[ObjectType] = (TRAINING_JOB,)
    # Running routers are told where requests go by an annotation of their pods.
    rules: Sequence[PolicyRule] = (*NAMESPACE_RULES, PolicyRule(("",), ("pods",), ("patch",)))
    reviews: Sequence[ObjectType] = admission.REVIEWS

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def gather(self, resource: InferenceService, caches: Caches) -> Observed:
        """Children, pods and the routers' reports."""
        return gather(resource, caches)

    def plan(self, resource: InferenceService, observed: Observed, now: datetime) -> Plan:
        """What to do about the service."""
        return rooms.plan(resource, observed, self._settings, now)

    def references(self, resource: InferenceService, *, created: bool) -> Sequence[Reference]:
        """What its review looks at."""
        return admission.references(resource, created=created)

    def review(self, resource: InferenceService, known: Known, *, created: bool) -> Verdict:
        """What is said of it when it is applied."""
        return admission.review(resource, known, created=created)
