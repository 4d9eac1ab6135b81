"""Models that a spec names by the TrainingJob that makes them: waited for, then pinned until the spec changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from controllers.runtime.errors import WaitError
from controllers.runtime.objects import Manifest, ObjectType
from headrace.api import InferenceService
from headrace.api.chain import PREDICTOR
from headrace.api.inferenceservice import InferenceServiceSpec, ModelSource, ResolvedModel
from headrace.api.meta import LocalReference
from headrace.api.routing import CANARY, SHADOW

LOOK = timedelta(seconds=10)
"""Pause between two looks at a job; its changes wake nobody here."""


def _reduced(job: Manifest) -> Manifest:
    metadata = job["metadata"]
    status = job.get("status") or {}
    storage = (job.get("spec") or {}).get("storage") or {}
    return {
        "apiVersion": job.get("apiVersion"),
        "kind": job.get("kind"),
        "metadata": {name: metadata.get(name) for name in ("name", "namespace", "uid", "resourceVersion")},
        "spec": {"storage": {"secretRef": storage.get("secretRef")}},
        "status": {
            "modelUri": status.get("modelUri") or "",
            "conditions": [
                {name: item.get(name) for name in ("type", "status", "message")}
                for item in status.get("conditions") or ()
                if item.get("type") in ("Succeeded", "Failed")
            ],
        },
    }


TRAINING_JOB = ObjectType(
    "headrace.dev/v1alpha1",
    "TrainingJob",
    "trainingjobs",
    managed_only=False,
    view="models",
    reduce=_reduced,
)
"""What is kept of the jobs: how they ended, and where their model is."""


def sources(service: InferenceService) -> Iterator[tuple[str, ModelSource]]:
    """Every model of the spec by the name of its step."""
    if service.spec.predictor.model is not None:
        yield PREDICTOR, service.spec.predictor.model
    if service.spec.canary is not None and service.spec.canary.model is not None:
        yield CANARY, service.spec.canary.model
    if service.spec.shadow is not None:
        yield SHADOW, service.spec.shadow.model
    for step in service.spec.fallback:
        if step.model is not None:
            yield step.name, step.model


def only(spec: InferenceServiceSpec, part: str) -> InferenceServiceSpec:
    """The spec without any model but that of its canary or its shadow."""
    other = {"canary": "shadow", "shadow": "canary"}[part]
    bare = spec.predictor.model_copy(update={"model": None})
    return spec.model_copy(update={"predictor": bare, "fallback": [], other: None})


def resolve(
    service: InferenceService, jobs: Mapping[str, Manifest]
) -> tuple[InferenceService, tuple[ResolvedModel, ...]]:
    """The service with each trainingJobRef replaced by where that job's model is, and what was found.

    What was found for a generation of the spec holds for all of it: a job that is run again changes nothing here.

    Args:
        service: As it was applied.
        jobs: The TrainingJobs that it names and that exist, by name.

    Raises:
        WaitError: a job has not succeeded.
    """
    pinned = {item.name: item for item in (service.status.models if service.status else ())}
    found: dict[str, ModelSource] = {}
    pins: list[ResolvedModel] = []
    for step, model in sources(service):
        reference = model.training_job_ref
        if reference is None:
            continue
        pin = pinned.get(step)
        if pin is None or (pin.generation, pin.training_job) != (service.metadata.generation, reference.name):
            pin = _model_of(step, reference.name, jobs.get(reference.name), service.metadata.generation)
        pins.append(pin)
        secret = model.secret_ref or (LocalReference(name=pin.secret) if pin.secret else None)
        found[step] = model.model_copy(update={"training_job_ref": None, "storage_uri": pin.uri, "secret_ref": secret})
    if not found:
        return service, ()
    spec = service.spec
    predictor = spec.predictor.model_copy(update={"model": found.get(PREDICTOR, spec.predictor.model)})
    fallback = [step.model_copy(update={"model": found.get(step.name, step.model)}) for step in spec.fallback]
    changes: dict[str, Any] = {"predictor": predictor, "fallback": fallback}
    if CANARY in found and spec.canary is not None:
        changes["canary"] = spec.canary.model_copy(update={"model": found[CANARY]})
    if SHADOW in found and spec.shadow is not None:
        changes["shadow"] = spec.shadow.model_copy(update={"model": found[SHADOW]})
    return service.model_copy(update={"spec": spec.model_copy(update=changes)}), tuple(pins)


def _model_of(step: str, name: str, job: Manifest | None, generation: int) -> ResolvedModel:
    field = f"{step}.model" if step in (PREDICTOR, CANARY, SHADOW) else f"the fallback step {step}"
    if job is None:
        raise WaitError(
            "TrainingJobNotFound",
            f"{field} names the TrainingJob {name}, which does not exist: create it, or correct the name",
        )
    status = job["status"]
    conditions = {item["type"]: item for item in status["conditions"]}
    uri = status["modelUri"]
    if (conditions.get("Failed") or {}).get("status") == "True":
        raise WaitError(
            "TrainingJobFailed",
            f"{field} waits for the TrainingJob {name}, which has failed: {conditions['Failed'].get('message') or ''}; "
            "run it again under this name, or name another",
        )
    if (conditions.get("Succeeded") or {}).get("status") != "True":
        raise WaitError(
            "WaitingForTrainingJob",
            f"{field} waits for the TrainingJob {name} to succeed; the job says how far it is",
            LOOK,
        )
    if not uri:
        raise WaitError(
            "TrainingJobHasNoModel",
            f"{field} names the TrainingJob {name}, which has succeeded and said of no model: publish one with "
            "run.publish, or give predictor.model.storageUri",
        )
    secret = (job["spec"]["storage"].get("secretRef") or {}).get("name") or ""
    return ResolvedModel(
        name=step,
        uri=uri.rpartition("/")[0],
        training_job=name,
        uid=job["metadata"].get("uid") or "",
        secret=secret,
        generation=generation,
    )
