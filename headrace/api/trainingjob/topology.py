"""How the processes of a run work together, on which accelerators, and where they sit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.schema import Model, remedy


class GPU(Model):
    """GPUs of each worker."""

    count: Annotated[int, Field(ge=1, le=16)] = 1
    """GPUs of each worker; one process is started per GPU."""
    product: Annotated[str, Field(max_length=63)] | None = None
    """Product that the node must have, as the GPU operator labels it in nvidia.com/gpu.product."""
    resource_name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$",
            max_length=253,
            json_schema_extra=remedy(
                r"self.matches(r'^[a-z0-9.-]+/[a-zA-Z0-9._-]+$')",
                "write an extended resource such as nvidia.com/gpu or amd.com/gpu",
            ),
        ),
    ] = "nvidia.com/gpu"
    """Extended resource that the device plugin offers."""


class Topology(Model):
    """How the workers exchange gradients and where they sit."""

    type: Literal["AllReduce"] = "AllReduce"
    """AllReduce: every worker holds the whole model, gradients are averaged after each backward pass."""
    all_reduce: Literal["Ring"] = "Ring"
    """Algorithm of the all-reduce."""
    zone_spread: Literal["Spread", "Pack", "None"] = "Spread"
    """Spread: workers are balanced over zones. Pack: workers share a zone where they fit. None: no preference."""
