"""The verdict on a canary: named rules over the figures of both arms, each with its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from headrace.api.counts import ArmCounts
from headrace.api.inferenceservice.traffic import CanaryAnalysis
from headrace.api.latency import quantile
from headrace.api.meta import parse_duration


@dataclass(frozen=True, slots=True)
class Arm:
    """What all routers counted of one arm.

    Attributes:
        errors: Requests that the arm's own model ended with an error or a timeout.
        fallbacks: Requests that the arm's own model did not answer; the errors are among them.
        latency: Requests by bucket.
    """

    requests: int = 0
    errors: int = 0
    fallbacks: int = 0
    latency: Mapping[int, int] = field(default_factory=dict)

    @property
    def error_rate(self) -> float:
        """Percent; 0 without requests."""
        return _percent(self.errors, self.requests)

    @property
    def fallback_rate(self) -> float:
        """Percent; 0 without requests."""
        return _percent(self.fallbacks, self.requests)

    def quantile(self, q: float) -> float | None:
        """Seconds; None without requests."""
        return quantile(self.latency, q)


MOST = 50.0
"""Percent of its requests answered by other steps above which a canary does not pass, however the stable model does."""


class Verdict(NamedTuple):
    """What a check came to, and its figures in words."""

    word: Literal["Waiting", "Pass", "Fail"]
    message: str


def total(counts: Iterable[ArmCounts]) -> Arm:
    """The sum over routers."""
    found = list(counts)
    latency: Counter[int] = Counter()
    for item in found:
        latency.update(item.latency)
    return Arm(
        sum(item.requests for item in found),
        sum(item.errors for item in found),
        sum(item.fallbacks for item in found),
        latency,
    )


Rule = Callable[[CanaryAnalysis, Arm, Arm], str | None]
"""Why the canary (third) fails beside the stable arm (second), or None."""


def it_has_more_errors(analysis: CanaryAnalysis, stable: Arm, canary: Arm) -> str | None:
    """Errors and timeouts of the model itself."""
    least = _percent(canary.errors, max(canary.requests, analysis.minimum_requests))
    if least > stable.error_rate + analysis.max_error_rate_increase:
        return (
            f"error rate {canary.error_rate:.2f} % ({canary.errors} of {canary.requests} requests) is more than "
            f"maxErrorRateIncrease {analysis.max_error_rate_increase:g} above the stable model's "
            f"{stable.error_rate:.2f} % ({stable.errors} of {stable.requests})"
        )
    if analysis.max_error_rate is not None and least > analysis.max_error_rate:
        return (
            f"error rate {canary.error_rate:.2f} % ({canary.errors} of {canary.requests} requests) is above "
            f"maxErrorRate {analysis.max_error_rate:g}"
        )
    return None


def it_is_answered_for_more_often(analysis: CanaryAnalysis, stable: Arm, canary: Arm) -> str | None:
    """Whatever the reason: an open breaker, no room, no replica."""
    least = _percent(canary.fallbacks, max(canary.requests, analysis.minimum_requests))
    if least > stable.fallback_rate + analysis.max_fallback_rate_increase:
        return (
            f"fallback rate {canary.fallback_rate:.2f} % ({canary.fallbacks} of {canary.requests} requests) is more "
            f"than maxFallbackRateIncrease {analysis.max_fallback_rate_increase:g} above the stable model's "
            f"{stable.fallback_rate:.2f} % ({stable.fallbacks} of {stable.requests})"
        )
    return None


def it_is_slower(analysis: CanaryAnalysis, stable: Arm, canary: Arm) -> str | None:
    """The p99, of which a few requests say nothing."""
    mine, other = canary.quantile(0.99), stable.quantile(0.99)
    if mine is None or canary.requests < analysis.minimum_requests:
        return None
    if analysis.max_latency is not None and mine > parse_duration(analysis.max_latency).total_seconds():
        return f"p99 latency {_ms(mine)} is above maxLatency {analysis.max_latency}"
    if other is None or stable.requests < analysis.minimum_requests:
        return None
    if mine > other * (1 + analysis.max_latency_increase / 100):
        return (
            f"p99 latency {_ms(mine)} is more than maxLatencyIncrease {analysis.max_latency_increase:g} % above the "
            f"stable model's {_ms(other)}"
        )
    return None


RULES: tuple[Rule, ...] = (it_has_more_errors, it_is_answered_for_more_often, it_is_slower)


def judge(analysis: CanaryAnalysis, stable: Arm, canary: Arm) -> Verdict:
    """The verdict on the figures so far.

    Before `minimum_requests` a rate is taken over as many, as if all that are missing were answered well: so a canary
    that is bad fails early, and one error among the first few fails nobody.
    """
    why = next((found for rule in RULES if (found := rule(analysis, stable, canary)) is not None), None)
    if why is not None:
        return Verdict("Fail", why)
    if canary.requests < analysis.minimum_requests:
        return Verdict("Waiting", f"{canary.requests} of minimumRequests {analysis.minimum_requests} requests so far")
    if canary.fallback_rate > MOST:
        return Verdict(
            "Waiting",
            f"other steps answered {canary.fallback_rate:.2f} % of the canary's {canary.requests} requests and as many "
            "of the stable model's: a comparison of two that do not answer says nothing",
        )
    p99 = canary.quantile(0.99)
    slow = f", p99 {_ms(p99)}" if p99 is not None else ""
    return Verdict(
        "Pass",
        f"error rate {canary.error_rate:.2f} % (stable {stable.error_rate:.2f} %), fallback rate "
        f"{canary.fallback_rate:.2f} % (stable {stable.fallback_rate:.2f} %){slow} over {canary.requests} requests",
    )


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
