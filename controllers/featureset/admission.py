"""What is said of a FeatureSet at `kubectl apply` that takes a look at other objects, or a library of the operator."""

from __future__ import annotations

from datetime import UTC, datetime

from controllers.featureset.builders import server_name
from controllers.featureset.schedule import next_time
from controllers.runtime.admission import Known, Reference, Verdict, conflicts, missing_secret
from controllers.runtime.objects import DEPLOYMENT, NETWORK_POLICY, PDB, SECRET, SERVICE, Key, ObjectType
from headrace.api import FeatureSet

_NAMED = (SERVICE, DEPLOYMENT, PDB, NETWORK_POLICY)
REVIEWS: tuple[ObjectType, ...] = (*_NAMED, SECRET)
"""Types that a review reads."""
_SOME_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def references(feature_set: FeatureSet, *, created: bool) -> list[Reference]:
    """What the review looks at."""
    found = _children(feature_set) if created else []
    return found + [Reference(SECRET, _key(feature_set, name)) for name, _, _ in _secrets(feature_set)]


def review(feature_set: FeatureSet, known: Known, *, created: bool) -> Verdict:
    """Refuse a schedule that is none and a name whose children belong to somebody else; warn of missing Secrets."""
    refusals = list(conflicts(feature_set, known, _children(feature_set))) if created else []
    try:
        next_time(feature_set.spec.refresh, _SOME_TIME)
    except ValueError as error:
        refusals.append(str(error))
    warnings: list[str] = []
    for name, path, keys in _secrets(feature_set):
        warnings += missing_secret(known, feature_set.metadata.namespace, name, path, keys)
    return Verdict(refusals, warnings)


def _children(feature_set: FeatureSet) -> list[Reference]:
    return [Reference(type_, _key(feature_set, server_name(feature_set))) for type_ in _NAMED]


def _secrets(feature_set: FeatureSet) -> list[tuple[str, str, str]]:
    """Secrets that are named: name, field, and the keys that they are to have."""
    spec = feature_set.spec
    found = []
    if spec.source.secret_ref is not None:
        keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        found.append((spec.source.secret_ref.name, "spec.source.secretRef", keys))
    if spec.online_store.secret_ref is not None:
        found.append((spec.online_store.secret_ref.name, "spec.onlineStore.secretRef", "HEADRACE_ONLINE_STORE_URI"))
    return found


def _key(feature_set: FeatureSet, name: str) -> Key:
    return Key(feature_set.metadata.namespace, name)
