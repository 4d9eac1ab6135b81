"""The FeatureSet kind as the runtime sees it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from controllers.featureset import admission
from controllers.featureset import plan as rooms
from controllers.featureset.observed import CHILDREN, Observed, gather
from controllers.runtime.admission import Known, Reference, Verdict
from controllers.runtime.controller import Caches, PolicyRule
from controllers.runtime.namespace import NAMESPACE_RULES, NAMESPACE_TYPES
from controllers.runtime.objects import BATCH_JOB, POD, ObjectType
from controllers.runtime.plan import Plan
from controllers.runtime.settings import Settings
from headrace.api import FeatureSet


class FeatureSetController:
    """Controller[FeatureSet, Observed] and Reviewing[FeatureSet].

    Pods belong to it by the labels on their templates (`OWNER_UID`), not by an owner reference.
    """

    resource = FeatureSet
    owns: Sequence[ObjectType] = (*NAMESPACE_TYPES, *CHILDREN, BATCH_JOB, POD)
    reads: Sequence[ObjectType] = ()
    rules: Sequence[PolicyRule] = NAMESPACE_RULES
    reviews: Sequence[ObjectType] = admission.REVIEWS

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def gather(self, resource: FeatureSet, caches: Caches) -> Observed:
        """Children, pods and their reports."""
        return gather(resource, caches)

    def plan(self, resource: FeatureSet, observed: Observed, now: datetime) -> Plan:
        """What to do about it."""
        return rooms.plan(resource, observed, self._settings, now)

    def references(self, resource: FeatureSet, *, created: bool) -> Sequence[Reference]:
        """What its review looks at."""
        return admission.references(resource, created=created)

    def review(self, resource: FeatureSet, known: Known, *, created: bool) -> Verdict:
        """What is said of it when it is applied."""
        return admission.review(resource, known, created=created)
