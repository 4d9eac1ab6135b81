"""What an InferenceService says of itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.inferenceservice.traffic import CanaryStatus, ShadowStatus
from headrace.api.meta import Status
from headrace.api.schema import Model, list_map


class ReplicaCounts(Model):
    """Pods of one part."""

    ready: int = 0
    """Pods that are ready."""
    total: int = 0
    """Pods asked for."""
    summary: str = ""
    """ready/total, for kubectl get."""


class StepStatus(Model):
    """How one step of the chain is doing, as the routers see it."""

    name: str
    """Name of the step; predictor is the primary."""
    state: Literal["Answering", "Standby", "Open", "NotReady", "Unknown"]
    """Answering: asked first now. Standby: asked when those before fail. Open: its breaker is open on a router."""
    reason: str = ""
    """Why a step is not asked."""


class ResolvedModel(Model):
    """Where the model of a TrainingJob was found."""

    name: str
    """Step of the chain that it is for."""
    uri: str
    """Folder of the model."""
    training_job: str
    """Name of the job."""
    uid: str = ""
    """Its uid: a namesake that runs later is another job."""
    secret: str = ""
    """Secret with credentials of the job's storage; empty for the installation's."""
    generation: int = 0
    """The metadata.generation that it was looked up for; it is looked up again when the spec changes."""


class InferenceServiceStatus(Status):
    """How the service is doing."""

    url: str = ""
    """Address inside the cluster."""
    answering: str = ""
    """The step that answers now."""
    steps: Annotated[list[StepStatus], Field(json_schema_extra=list_map("name"))] = Field(default_factory=list)
    """Every step in order."""
    models: Annotated[list[ResolvedModel], Field(json_schema_extra=list_map("name"))] = Field(default_factory=list)
    """Models of TrainingJobs, as found."""
    predictor: ReplicaCounts = Field(default_factory=ReplicaCounts)
    """Pods of the primary model."""
    router: ReplicaCounts = Field(default_factory=ReplicaCounts)
    """Pods in front."""
    canary: CanaryStatus | None = None
    """How far the canary is."""
    shadow: ShadowStatus | None = None
    """What came of the mirrored requests."""
