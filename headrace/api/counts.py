"""What a router counts while requests have more than one place to go; the operator adds up what all of them counted."""

from __future__ import annotations

from pydantic import Field

from headrace.api.schema import Model


class ArmCounts(Model):
    """What one router counted of one arm."""

    requests: int = 0
    """Requests of the arm."""
    errors: int = 0
    """Those that the arm's own model ended with an error or a timeout."""
    fallbacks: int = 0
    """Those that the arm's own model did not answer."""
    latency: dict[int, int] = Field(default_factory=dict)
    """Requests by bucket of their latency (headrace.api.latency)."""


class ShadowCounts(Model):
    """What one router counted of the shadow since it was named."""

    revision: str
    """Of the ShadowRoute."""
    requests: int = 0
    """Requests that were mirrored and have come to an end."""
    differing: int = 0
    """Those that the shadow answered otherwise."""
    errors: int = 0
    """Those that it did not answer."""
    dropped: int = 0
    """Requests that were not mirrored because it was busy."""
    example: str = ""
    """The last difference or error."""
    primary_latency: dict[int, int] = Field(default_factory=dict)
    """Requests that both answered, by bucket of the primary's latency."""
    shadow_latency: dict[int, int] = Field(default_factory=dict)
    """The same, of the shadow's."""


class TrafficReport(Model):
    """What one router counted since it took a Traffic."""

    revision: str
    """Of the Traffic."""
    stable: ArmCounts = Field(default_factory=ArmCounts)
    """The stable model's arm."""
    canary: ArmCounts = Field(default_factory=ArmCounts)
    """The canary's arm."""
    shadow: ShadowCounts | None = None
    """The shadow, which goes on counting where the canary's percent changes."""
