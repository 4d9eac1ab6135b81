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
    backend: Annotated[str, Field(max_length=32, pattern=r"^[A-Za-z0-9_:.-]*$")] = ""
    resumed_from_step: Count | None = None
    metrics: Annotated[dict[Annotated[str, Field(max_length=63)], Decimal], Field(max_length=64)] = Field(
        default_factory=dict
    )
    model_uri: StorageURI | None = None

    def progress(self) -> Progress:
        """The part of it that is the status's progress."""
        return Progress.model_validate({name: getattr(self, name) for name in Progress.model_fields})


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
    if report.attempt not in (0, attempt_of(pod)):
        return None
    return report
