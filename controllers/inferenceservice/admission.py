"""What is said of an InferenceService at `kubectl apply` that takes a look at other objects."""

from __future__ import annotations

from collections.abc import Iterator

from controllers.inferenceservice.builders import predictor_name
from controllers.runtime.admission import Known, Reference, Verdict, conflicts, missing_secret, unoffered
from controllers.runtime.objects import (
    DEPLOYMENT,
    HPA,
    NETWORK_POLICY,
    NODE,
    PDB,
    SECRET,
    SERVICE,
    Key,
    ObjectType,
)
from headrace.api import InferenceService
from headrace.api.meta import PodOptions, parse_quantity

_NAMED = (SERVICE, DEPLOYMENT, PDB, NETWORK_POLICY)
"""Children of the routers and of the predictors that have the plain name of their part."""
REVIEWS: tuple[ObjectType, ...] = (*_NAMED, HPA, NODE, SECRET)
"""Types that a review reads."""
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def references(service: InferenceService, *, created: bool) -> list[Reference]:
    """What the review looks at."""
    found = _children(service) if created else []
    found += [Reference(SECRET, _key(service, name)) for name, _ in _secrets(service)]
    if any(_extended(service)):
        found.append(Reference(NODE))
    return found


def review(service: InferenceService, known: Known, *, created: bool) -> Verdict:
    """Refuse a name whose children belong to somebody else; warn of what the pods will wait for."""
    warnings: list[str] = []
    for name, path in _secrets(service):
        warnings += missing_secret(known, service.metadata.namespace, name, path, _KEYS)
    for resource, count, path in _extended(service):
        warnings += unoffered(known, NODE, resource, count, path)
    return Verdict(conflicts(service, known, _children(service)) if created else (), warnings)


def _children(service: InferenceService) -> list[Reference]:
    predictor = predictor_name(service)
    names = (service.metadata.name, predictor)
    children = [Reference(type_, _key(service, name)) for name in names for type_ in _NAMED]
    if service.spec.predictor.max_replicas > service.spec.predictor.min_replicas:
        children.append(Reference(HPA, _key(service, predictor)))
    return children


def _secrets(service: InferenceService) -> Iterator[tuple[str, str]]:
    """Secrets that the service names, and the field."""
    model = service.spec.predictor.model
    if model is not None and model.secret_ref is not None:
        yield model.secret_ref.name, "spec.predictor.model.secretRef"
    canary = service.spec.canary
    if canary is not None and canary.model is not None and canary.model.secret_ref is not None:
        yield canary.model.secret_ref.name, "spec.canary.model.secretRef"
    shadow = service.spec.shadow
    if shadow is not None and shadow.model.secret_ref is not None:
        yield shadow.model.secret_ref.name, "spec.shadow.model.secretRef"
    for index, step in enumerate(service.spec.fallback):
        if step.model is not None and step.model.secret_ref is not None:
            yield step.model.secret_ref.name, f"spec.fallback[{index}].model.secretRef"


def _extended(service: InferenceService) -> Iterator[tuple[str, float, str]]:
    """Extended resources that pods ask for: name, amount and field."""
    parts: tuple[tuple[str, PodOptions], ...] = (("predictor", service.spec.predictor), ("router", service.spec.router))
    for name, part in parts:
        for resource, amount in part.resources.limits.items():
            if "/" in resource:
                yield resource, parse_quantity(amount), f"spec.{name}.resources.limits"


def _key(service: InferenceService, name: str) -> Key:
    return Key(service.metadata.namespace, name)
