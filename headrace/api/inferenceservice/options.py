"""How a step of the chain is asked, and when it is given a rest."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from headrace.api.schema import LIST_ATOMIC, Model, PositiveDuration, Rule, rules


@rules(
    Rule(
        "self.slidingWindowType == 'TimeBased' || self.minimumNumberOfCalls <= self.slidingWindowSize",
        "minimumNumberOfCalls must not exceed slidingWindowSize, or the breaker never opens",
        ".minimumNumberOfCalls",
        lambda breaker: (
            breaker.sliding_window_type == "TimeBased" or breaker.minimum_number_of_calls <= breaker.sliding_window_size
        ),
    )
)
class CircuitBreaker(Model):
    """When a step is given a rest (resilience4j's semantics)."""

    sliding_window_type: Literal["CountBased", "TimeBased"] = "CountBased"
    """Whether the rates are over the last calls or over the last seconds."""
    sliding_window_size: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Last calls (CountBased) or seconds (TimeBased) that the rates are computed over."""
    minimum_number_of_calls: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Calls before the rate is looked at."""
    failure_rate_threshold: Annotated[int, Field(ge=1, le=100)] = 50
    """Percent of failed calls (errors and timeouts) that opens the breaker."""
    slow_call_rate_threshold: Annotated[int, Field(ge=1, le=100)] = 100
    """Percent of slow calls that opens the breaker."""
    slow_call_duration_threshold: PositiveDuration = "60s"
    """Time above which a call is slow, whether it is answered or not."""
    wait_duration_in_open_state: PositiveDuration = "5s"
    """Time during which the step is not asked."""
    permitted_calls_in_half_open_state: Annotated[int, Field(ge=1, le=1000)] = 3
    """Trial calls that decide between closing and opening again."""


FallbackReason = Literal["Timeout", "Error", "Overloaded", "Open", "NotReady"]


class StepOptions(Model):
    """How long a step of the chain may take and when it is given up."""

    timeout: PositiveDuration = "1s"
    """Time for this step's answer; after it the next step is asked."""
    max_concurrency: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Requests in flight to this step from one router; above it the step counts as overloaded and the next is asked."""
    circuit_breaker: CircuitBreaker = Field(default_factory=CircuitBreaker)
    """When the step is given a rest."""
    fallback_on: Annotated[list[FallbackReason], Field(max_length=5, json_schema_extra=LIST_ATOMIC)] = Field(
        default_factory=lambda: list(get_args(FallbackReason))
    )
    """Why the next step may be asked. Where this step does not answer for another reason, the request ends with 503."""
    hedge_after: PositiveDuration | None = None
    """Time of silence after which the next step is asked beside this one; the first answer counts. By default never."""


class OutlierDetection(Model):
    """When one replica is set aside (Envoy's outlier detection): after a lost connection or silence at once, after
    errors when there are several in a row."""

    consecutive5xx: Annotated[int, Field(ge=1, le=10_000, alias="consecutive5xx")] = 5
    """Server errors in a row after which a replica is set aside."""
    base_ejection_time: PositiveDuration = "1s"
    """Time for which it is set aside first; twice as long each further time in a row."""
    max_ejection_time: PositiveDuration = "30s"
    """Most of that time."""
    max_ejection_percent: Annotated[int, Field(ge=0, le=100)] = 50
    """Percent of the replicas that may be set aside for errors at the same time; one always may."""


class RemoteOptions(StepOptions):
    """How a step in pods of its own is asked."""

    outlier_detection: OutlierDetection = Field(default_factory=OutlierDetection)
    """When one of its replicas is set aside."""
