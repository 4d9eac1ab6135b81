"""How a run starts, is interrupted, starts again and is cleaned up."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headrace.api.schema import Model


class RestartPolicy(Model):
    """How often a failed run is started again from its last checkpoint."""

    max_restarts: Annotated[int, Field(ge=0, le=10_000)] = 10
    """Restarts after a worker's own failure (lost nodes, evictions and deleted pods are not counted)."""
