"""The report of rank 0: data from a pod that runs other people's code, so every field is bounded and checked."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from controllers.runtime.objects import REPORT, Manifest
from controllers.trainingjob.run import attempt_of
from headrace.api.schema import StorageURI
from headrace.api.trainingjob import Progress

MAX_LENGTH = 16384
"""Characters of a report that are looked at."""

Count = Annotated[int, Field(ge=0, le=2**53)]
Decimal = Annotated[str, Field(max_length=32, pattern=r"^(|nan|[+-]?inf|[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?)$")]


Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1024)]


class Part(BaseModel):
    """A part of a report."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class ReportedStepTime(Part):
    """Seconds of a step."""

    total: Decimal = ""
    data: Decimal = ""
    communication: Decimal = ""
    compute: Decimal = ""


class ReportedGoodput(Part):
    """Seconds of the run by what they were spent on; `since` and `at` in seconds since 1970."""

    since: Seconds
    at: Seconds
    useful: Seconds = 0
    startup: Seconds = 0
    restart: Seconds = 0
    checkpoint: Seconds = 0
    lost_steps: Seconds = 0
    hang: Seconds = 0


class ReportedProblem(Part):
    """Why something did not work."""

    reason: Annotated[str, Field(max_length=63, pattern=r"^[A-Z][A-Za-z0-9]*$")]
    message: Text = ""


class ReportedCheckpoint(Part):
    """The last checkpoint, and why there is no later one."""

    step: Count = 0
    bytes: Count = 0
    seconds: Decimal = ""
    pause_seconds: Decimal = ""
    problem: ReportedProblem | None = None
    passed_over: Text = ""


class ReportedModel(Part):
    """What the registry said."""

    model: Annotated[str, Field(max_length=253)] = ""
    version: Annotated[str, Field(max_length=63)] = ""
    run_id: Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z0-9]*$")] = ""
    url: Annotated[str, Field(max_length=1024, pattern=r"^(https?://[^\s]+)?$")] = ""
    problem: Text = ""


class Report(BaseModel):
    """What rank 0 says; unknown fields are ignored, so that a newer trainer may say more."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)

    attempt: Count = 0
    epoch: Count = 0
    epochs: Count = 0
    step: Count = 0
    steps: Count = 0
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    loss: Decimal = ""
    throughput: Decimal = ""
    learning_rate: Decimal = ""
    estimated_remaining_seconds: Count | None = None
    backend: Annotated[str, Field(max_length=32, pattern=r"^[A-Za-z0-9_:.-]*$")] = ""
    resumed_from_step: Count | None = None
    metrics: Annotated[dict[Annotated[str, Field(max_length=63)], Decimal], Field(max_length=64)] = Field(
        default_factory=dict
    )
    model_uri: StorageURI | None = None
    step_time: ReportedStepTime | None = None
    goodput: ReportedGoodput | None = None
    checkpoint: ReportedCheckpoint | None = None
    registered: ReportedModel | None = None

    def progress(self) -> Progress:
        """The part of it that is the status's progress."""
        return Progress.model_validate(
            {name: getattr(self, name) for name in Progress.model_fields if name in Report.model_fields}
        )


class MalformedReportError(ValueError):
    """The annotation is there and is no report; the text says where and why."""


def read(pod: Manifest | None) -> Report | None:
    """The report of rank 0's pod about its own attempt, or None when there is none yet.

    Raises:
        MalformedReportError: The annotation is no valid report.
    """
    text = ((pod or {}).get("metadata", {}).get("annotations") or {}).get(REPORT)
    if pod is None or not text:
        return None
    if len(text) > MAX_LENGTH:
        raise MalformedReportError(f"{len(text)} characters, at most {MAX_LENGTH} are read")
    try:
        report = Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:100]
        raise MalformedReportError(f"{where}: {first['msg']}" if where else first["msg"]) from error
    if 0 < report.attempt < attempt_of(pod):
        return None  # Attempts may have begun in the same pod since.
    return report
