"""What is said of an InferenceService at `kubectl apply` that takes a look at other objects."""

from __future__ import annotations

from collections.abc import Iterator

from controllers.inferenceservice.builders import predictor_name, runs_inside
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
from headrace.api.inferenceservice import ModelSource
from headrace.api.meta import PodOptions, parse_quantity

_NAMED = (SERVICE, DEPLOYMENT, PDB, NETWORK_POLICY)
"""Children of the routers and of the predictors that have the plain name of their part."""
REVIEWS: tuple[ObjectType, ...] = (*_NAMED, HPA, NODE, SECRET)
"""Types that a review reads."""
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REGISTRY_KEYS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def references(service: InferenceService, *, created: bool) -> list[Reference]:
    """What the review looks at."""
    found = _children(service) if created else []
    found += [Reference(SECRET, _key(service, name)) for name, _, _ in _secrets(service)]
    if any(_extended(service)):
        found.append(Reference(NODE))
    return found


def review(service: InferenceService, known: Known, *, created: bool) -> Verdict:
    """Refuse a name whose children belong to somebody else; warn of what the pods will wait for."""
    warnings: list[str] = []
    for name, path, keys in _secrets(service):
        warnings += missing_secret(known, service.metadata.namespace, name, path, keys)
    for resource, count, path in _extended(service):
        warnings += unoffered(known, NODE, resource, count, path)
    return Verdict(conflicts(service, known, _children(service)) if created else (), warnings)


def _children(service: InferenceService) -> list[Reference]:
    predictor = predictor_name(service)
    names = (service.metadata.name,) if runs_inside(service) else (service.metadata.name, predictor)
    children = [Reference(type_, _key(service, name)) for name in names for type_ in _NAMED]
    if not runs_inside(service) and service.spec.predictor.max_replicas > service.spec.predictor.min_replicas:
        children.append(Reference(HPA, _key(service, predictor)))
    return children


def _secrets(service: InferenceService) -> Iterator[tuple[str, str, str]]:
    """Secrets that the service names, the field, and the keys that they need."""
    for path, model in _models(service):
        if model.secret_ref is not None:
            yield model.secret_ref.name, f"{path}.secretRef", _KEYS
        if model.registry is not None and model.registry.secret_ref is not None:
            yield model.registry.secret_ref.name, f"{path}.registry.secretRef", _REGISTRY_KEYS
    log = service.spec.request_log
    if log is not None and log.secret_ref is not None:
        yield log.secret_ref.name, "spec.requestLog.secretRef", _KEYS


def _models(service: InferenceService) -> Iterator[tuple[str, ModelSource]]:
    """Models and where the spec has them."""
    spec = service.spec
    found = [("spec.predictor.model", spec.predictor.model)]
    found.append(("spec.canary.model", spec.canary.model if spec.canary else None))
    found.append(("spec.shadow.model", spec.shadow.model if spec.shadow else None))
    found += [(f"spec.fallback[{index}].model", step.model) for index, step in enumerate(spec.fallback)]
    for path, model in found:
        if model is not None:
            yield path, model


def _extended(service: InferenceService) -> Iterator[tuple[str, float, str]]:
    """Extended resources that pods ask for: name, amount and field."""
    parts: tuple[tuple[str, PodOptions], ...] = (("predictor", service.spec.predictor), ("router", service.spec.router))
    for name, part in parts:
        for resource, amount in part.resources.limits.items():
            if "/" in resource:
                yield resource, parse_quantity(amount), f"spec.{name}.resources.limits"


def _key(service: InferenceService, name: str) -> Key:
    return Key(service.metadata.namespace, name)
