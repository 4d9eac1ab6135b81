"""Traffic of an InferenceService beside its stable model: a canary in steps, and who is in which arm."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from headrace.api.inferenceservice.model import ModelSource
from headrace.api.meta import EnvVar, Resources
from headrace.api.schema import ImageName, Model, PositiveDuration, Rule, list_map, remedy, rules

CanaryPhase = Literal["Starting", "Progressing", "Promoting", "Promoted", "RolledBack"]
_HEADER = r"^[A-Za-z0-9][A-Za-z0-9-]*$"
Percent = Annotated[float, Field(ge=0, le=100)]


class Allocation(Model):
    """Who is in which arm."""

    unit_header: Annotated[
        str,
        Field(
            pattern=_HEADER,
            max_length=128,
            json_schema_extra=remedy(
                f"self.matches(r'{_HEADER}')", "write the name of a request header, such as x-user-id"
            ),
        ),
    ]
    """Request header that carries the unit (a user, a session), such as x-user-id. A unit stays in its arm, whichever
    router it meets; requests without it are dealt at random."""


class CanaryStep(Model):
    """A share of the requests, for some time."""

    percent: Annotated[int, Field(ge=1, le=100)]
    """Percent of the requests (of the units, where allocation.unitHeader is set) that the canary answers."""
    pause: PositiveDuration = "1m"
    """Least time at this percent; the next step also needs the analysis to pass."""


class CanaryAnalysis(Model):
    """When the canary is good enough, compared with the stable model over the same time. Figures count from the
    beginning of the step."""

    interval: PositiveDuration = "10s"
    """Time between two checks."""
    minimum_requests: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Requests that the canary must have had in a step before it may pass. It fails earlier when answering all that are
    missing could not save it."""
    max_error_rate_increase: Percent = 1.0
    """Points by which the canary's percent of errors and timeouts may exceed the stable model's. A request that the
    canary refuses and the stable model answers is an error of the canary."""
    max_fallback_rate_increase: Percent = 1.0
    """Points by which the percent of its requests that another step had to answer, for any reason, may exceed it."""
    max_latency_increase: Annotated[float, Field(ge=0, le=100_000)] = 50.0
    """Percent by which the p99 of its requests' latency may exceed the stable model's."""
    max_error_rate: Percent | None = None
    """Percent of errors and timeouts that it may have at all."""
    max_latency: PositiveDuration | None = None
    """The p99 that it may have at all."""


def _default_steps() -> list[CanaryStep]:
    return [CanaryStep(percent=percent) for percent in (5, 25, 50)]


@rules(
    Rule(
        "has(self.model) || has(self.image) || has(self.resources) || has(self.env)",
        "a canary that changes nothing: set model, image, resources or env",
        check=lambda canary: any((canary.model, canary.image, canary.resources, canary.env)),
    ),
    Rule(
        "!has(self.steps) || self.steps.map(s, s.percent).isSorted()",
        "percents of steps must ascend",
        ".steps",
        lambda canary: [step.percent for step in canary.steps] == sorted({step.percent for step in canary.steps}),
    ),
)
class Canary(Model):
    """A change of the predictor that a growing part of the requests tries first. When a check fails it gets no more
    requests; when all steps have passed the predictor becomes what the canary says, for as long as it stands here."""

    model: ModelSource | None = None
    """The new model; by default the predictor's."""
    image: ImageName | None = None
    """Image in place of the predictor's."""
    resources: Resources | None = None
    """Compute resources in place of the predictor's."""
    env: Annotated[list[EnvVar], Field(max_length=256, json_schema_extra=list_map("name"))] | None = None
    """Environment in place of the predictor's."""
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Least pods of the canary; it has its percent of the predictor's where that is more."""
    steps: Annotated[list[CanaryStep], Field(min_length=1, max_length=20, json_schema_extra=list_map("percent"))] = (
        Field(default_factory=_default_steps)
    )
    """Percents in ascending order."""
    analysis: CanaryAnalysis = Field(default_factory=CanaryAnalysis)
    """What decides between the next step and going back."""


class Tolerance(Model):
    """When two floats count as the same: |shadow - primary| <= absolute + relative * |primary| (numpy.isclose)."""

    absolute: Annotated[float, Field(ge=0)] = 0.0001
    """Difference that is none, whatever the size."""
    relative: Annotated[float, Field(ge=0)] = 0.001
    """Part of the primary's value that is no difference."""


class Shadow(Model):
    """A second model that gets a copy of the requests. Its answers are compared with the primary's and never given to
    anybody."""

    model: ModelSource
    """The model."""
    percent: Annotated[int, Field(ge=1, le=100)] = 10
    """Percent of the requests that the primary answers."""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pods of the shadow."""
    resources: Resources | None = None
    """Compute resources in place of the predictor's."""
    env: Annotated[list[EnvVar], Field(max_length=256, json_schema_extra=list_map("name"))] | None = None
    """Environment in place of the predictor's."""
    timeout: PositiveDuration = "1s"
    """Time for its answer."""
    max_concurrency: Annotated[int, Field(ge=1, le=1000)] = 16
    """Mirrored requests in flight from one router; what comes above it is not mirrored."""
    tolerance: Tolerance = Field(default_factory=Tolerance)
    """When floats count as the same. Other types must be equal."""


class ArmStatus(Model):
    """Figures of one arm since the step began, as of the last check."""

    requests: int = 0
    """Requests."""
    error_rate: float = 0.0
    """Percent that ended in an error or a timeout of the arm's model (another step answered them)."""
    fallback_rate: float = 0.0
    """Percent that another step had to answer, for whatever reason."""
    p50_milliseconds: float | None = None
    """Median latency of a request, at most 10 % too high."""
    p99_milliseconds: float | None = None
    """99th percentile of it, likewise."""


class CanaryStatus(Model):
    """How far the canary is."""

    phase: CanaryPhase
    """Starting: its pods come up. Promoting: all steps have passed and the predictor is being updated."""
    percent: int = 0
    """Percent of the requests that the routers were told to send it."""
    step: int = 0
    """Steps that have begun."""
    summary: str = ""
    """Phase and percent, for kubectl get."""
    verdict: Literal["", "Waiting", "Pass", "Fail"] = ""
    """Of the last check. Waiting: too few requests."""
    message: str = ""
    """What it said."""
    stable: ArmStatus = Field(default_factory=ArmStatus)
    """Figures of the stable model."""
    canary: ArmStatus = Field(default_factory=ArmStatus)
    """Figures of the canary."""
    ready: int = 0
    """Pods of the canary that are ready."""
    revision: str = ""
    """Of what the canary changes; another one begins anew."""
    spec_hash: str = ""
    """Of all that spec.canary says; after a rollback another one begins anew."""
    phase_since: datetime | None = None
    """When the phase began."""
    step_since: datetime | None = None
    """When the step began."""
    checked: datetime | None = None
    """When the last check was."""


class ShadowStatus(Model):
    """What came of the mirrored requests, as of the last look at the routers' reports (each half minute)."""

    summary: str = ""
    """Differing of mirrored, for kubectl get."""
    requests: int = 0
    """Requests mirrored, by the routers that run now, since the shadow was last changed."""
    differing: int = 0
    """Those that the shadow answered otherwise."""
    differing_rate: float = 0.0
    """Percent of those that it answered."""
    errors: int = 0
    """Those that it did not answer."""
    dropped: int = 0
    """Requests not mirrored because it was busy."""
    example: str = ""
    """A difference or an error."""
    primary_p99_milliseconds: float | None = None
    """99th percentile of the primary's latency for these requests, at most 10 % too high."""
    shadow_p99_milliseconds: float | None = None
    """That of the shadow's."""
    ready: int = 0
    """Pods that are ready."""
    problem: str = ""
    """Why not all are."""
    revision: str = ""
    """Of the shadow."""
    checked: datetime | None = None
    """When the reports were last looked at."""
