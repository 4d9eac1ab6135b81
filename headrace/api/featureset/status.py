"""The status of a FeatureSet, and what its pods report."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from headrace.api.meta import Status
from headrace.api.schema import Model, list_map

Trigger = Literal["Created", "TransformChanged", "SourceChanged", "Schedule", "Requested", "StoreLost", "Retry"]
"""What sets a refresh off."""


class FeatureStatus(Model):
    """One feature as it is computed now."""

    name: str
    """Its name."""
    hash: str
    """Hash of all that its values follow from."""
    computed: Literal["OnRefresh", "OnRequest"]
    """OnRefresh: kept in the online store. OnRequest: computed when it is asked for."""


class Online(Model):
    """What the online store holds."""

    version: str = ""
    """Version that readers see."""
    hash: str = ""
    """Hash of the transform that it was computed with."""
    source_version: str = ""
    """Version of the source that it was made from."""
    entities: int = 0
    """Entities."""
    refreshed_at: datetime | None = None
    """When readers began to see it."""


class RefreshStatus(Model):
    """The refresh under way, or the last one."""

    number: int = 0
    """Number of the refresh; its Job is <name>-refresh-<number>."""
    phase: Literal["Pending", "Reading", "Writing", "Succeeded", "Failed"] = "Pending"
    """What it does, or how it ended."""
    mode: Literal["", "Full", "Incremental", "Unchanged"] = ""
    """Full: a new version. Incremental: rows of added files into the present one. Unchanged: nothing was to do."""
    trigger: Trigger = "Created"
    """Why it was begun."""
    done: int = 0
    """Entities written."""
    total: int = 0
    """Entities to write; 0 while not known."""
    summary: str = ""
    """For kubectl get."""
    message: str = ""
    """Why it failed."""
    started_at: datetime | None = None
    """When its Job was asked for."""
    finished_at: datetime | None = None
    """When it ended."""
    source_version: str = ""
    """Version of the source that set it off, where one did."""
    failures: int = 0
    """Refreshes that failed in a row."""
    requested: str = ""
    """Value of the annotation headrace.dev/refresh that was last obeyed."""


class ServerCounts(Model):
    """The pods that answer."""

    ready: int = 0
    """Pods that are ready."""
    total: int = 0
    """Pods asked for."""
    summary: str = ""
    """ready/total, for kubectl get."""


class FeatureSetStatus(Status):
    """How the features are doing."""

    url: str = ""
    """Address of the servers inside the cluster."""
    hash: str = ""
    """Hash of transform and schema; models carry it, see docs/features.md."""
    features: Annotated[list[FeatureStatus], Field(json_schema_extra=list_map("name"))] = Field(default_factory=list)
    """Every feature in order."""
    online: Online = Field(default_factory=Online)
    """What the online store holds."""
    refresh: RefreshStatus = Field(default_factory=RefreshStatus)
    """The refresh under way, or the last one."""
    next_refresh: datetime | None = None
    """Next time of the schedule."""
    servers: ServerCounts = Field(default_factory=ServerCounts)
    """The pods that answer."""


class RefreshReport(Model):
    """What the pod of a refresh says of itself."""

    phase: Literal["Reading", "Writing", "Succeeded"]
    """What it does."""
    mode: Literal["", "Full", "Incremental", "Unchanged"] = ""
    """How it loads."""
    done: int = 0
    """Entities written."""
    total: int = 0
    """Entities to write."""
    online: Online | None = None
    """What readers see, once it has succeeded."""


class ServerReport(Model):
    """What a server says of itself."""

    source_version: str = ""
    """Version of the source as it is now; empty while not known."""
    version: str = ""
    """Version in the online store; empty where there is none, or it does not answer."""
    empty: bool = False
    """The online store answers and has no version of this transform."""
    problem: str = ""
    """Why it cannot answer; empty while it can."""
