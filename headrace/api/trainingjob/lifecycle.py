"""How a run starts, is interrupted, starts again and is cleaned up."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headrace.api.schema import Duration, Model, PositiveDuration


class RestartPolicy(Model):
    """How often a failed run is started again from its last checkpoint, and when it counts as hung."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 10
    """Restarts within `window` after a worker's own failure; lost nodes, evictions and deleted pods are not counted."""
    window: Duration = "1h"
    """Time within which restarts are counted; 0s: since the job began."""
    hang_timeout: PositiveDuration | None = None
    """Time without a step after which the workers count as hung and are started again. By default it is learnt: ten
    times the slowest of the last hundred or so steps, and at least 5m."""


class Scheduling(Model):
    """How long a group of workers may be started in part."""

    timeout: PositiveDuration = "5m"
    """Time in which all workers must have found a node once one of them holds one. After it they all let go, so that
    no half of a group keeps what another job could use, and try again later, each time after a longer pause."""
