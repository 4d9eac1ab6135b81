"""What the operator tells running routers, without a rolling update.

The operator writes a `Traffic` as JSON into the annotation `headrace.dev/traffic` of each router pod; the kubelet shows
it inside as a file. An empty file means that all requests go down the chain.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headrace.api.chain import RemotePredictor
from headrace.api.schema import Model

TRAFFIC = "headrace.dev/traffic"
"""Annotation of a router pod."""
TRAFFIC_FILE = "traffic.json"
"""Name of the file that shows it."""
STABLE = "stable"
"""Arm of the predictor."""
CANARY = "canary"
"""Arm and step of the canary."""
SHADOW = "shadow"
"""Component and step of the shadow."""
ARM_HEADER = "headrace-arm"
"""Response header: the arm of the request, while there is more than one."""


class CanaryRoute(RemotePredictor):
    """The canary's replicas and their share of the requests."""

    percent: Annotated[int, Field(ge=0, le=100)]
    """Percent of the units; 0 gets ready for some."""
    salt: str
    """Of the allocation."""


class ShadowRoute(RemotePredictor):
    """The shadow's replicas, how much is mirrored to them, and what counts as a difference."""

    percent: Annotated[int, Field(ge=1, le=100)]
    """Percent of the requests that the primary answers."""
    revision: str
    """Hash of the rest; counts begin anew with each."""
    absolute_tolerance: Annotated[float, Field(ge=0)]
    """As numpy.isclose's atol."""
    relative_tolerance: Annotated[float, Field(ge=0)]
    """As numpy.isclose's rtol."""


class Traffic(Model):
    """Where requests go beside the chain."""

    revision: str
    """Hash of the rest; counts begin anew with each."""
    unit_header: str = ""
    """Request header with the unit; empty deals at random."""
    report_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Time between two reports of counts."""
    canary: CanaryRoute | None = None
    """The canary."""
    shadow: ShadowRoute | None = None
    """The shadow."""
