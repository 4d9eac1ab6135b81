"""What all kinds share: object metadata, conditions, references, and the pod fields that people set most."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from headrace.api.schema import (
    LIST_ATOMIC,
    KindInfo,
    Model,
    ObjectName,
    Opaque,
    Quantity,
    Rule,
    list_map,
    remedy,
    rules,
)


class ObjectMeta(Model):
    """The part of metav1.ObjectMeta that Headrace reads; the rest is kept as it came."""

    model_config = ConfigDict(extra="allow")

    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class Condition(Model):
    """metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """Name of the condition, CamelCase, such as Ready."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", min_length=1, max_length=1024)]
    """Why, as one CamelCase word that can be searched for."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, for a person, and what to do about it."""
    last_transition_time: datetime
    """When the status last changed."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation that this condition was computed from."""


class Status(Model):
    """The part of every status that tools rely on (kstatus, Argo CD, Flux)."""

    observed_generation: int = 0
    """The metadata.generation that this status was computed from."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=list_map("type"))] = Field(default_factory=list)
    """Standard conditions; Ready is the summary."""


class Resource(Model):
    """A custom resource as it comes from the API server. Subclasses declare `info`, `spec` and `status`."""

    info: ClassVar[KindInfo]

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)
    spec: Any
    status: Any = None


class LocalReference(Model):
    """An object in the same namespace."""

    name: ObjectName
    """Name of the object."""


class KeyReference(Model):
    """One key of a ConfigMap or Secret in the same namespace."""

    name: ObjectName
    """Name of the object."""
    key: Annotated[str, Field(min_length=1, max_length=253)]
    """Key inside the object's data."""


def _requests_within_limits(resources: Resources) -> bool:
    return all(
        parse_quantity(amount) <= parse_quantity(resources.limits[name])
        for name, amount in resources.requests.items()
        if name in resources.limits
    )


@rules(
    Rule(
        "!has(self.requests) || !has(self.limits) || self.requests.all(r, !(r in self.limits) || "
        "!isQuantity(string(self.requests[r])) || !isQuantity(string(self.limits[r])) || "
        "!quantity(string(self.requests[r])).isGreaterThan(quantity(string(self.limits[r]))))",
        "a request may not exceed the limit of the same resource: raise the limit or lower the request",
        ".requests",
        _requests_within_limits,
    )
)
class Resources(Model):
    """Compute resources of one pod's main container."""

    requests: Annotated[dict[str, Quantity], Field(max_length=32)] = Field(default_factory=dict)
    """What the scheduler reserves, by resource name."""
    limits: Annotated[dict[str, Quantity], Field(max_length=32)] = Field(default_factory=dict)
    """What the container may not exceed, by resource name."""


@rules(
    Rule(
        "!(has(self.value) && has(self.valueFrom))",
        "set value or valueFrom, not both",
        ".valueFrom",
        lambda variable: variable.value is None or variable.value_from is None,
    )
)
class EnvVar(Model):
    """An environment variable; `value` or `valueFrom`."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[^=\s]+$",
            min_length=1,
            max_length=253,
            json_schema_extra=remedy(
                r"self.matches(r'^[^=\s]+$')", "write a name such as LOG_LEVEL, without '=' or spaces"
            ),
        ),
    ]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=131_072)] | None = None
    """Its value."""
    value_from: Opaque | None = None
    """Its source, as in a pod's container."""


class PodOptions(Model):
    """Where and how the pods of a resource run; field names and meaning are those of a pod."""

    resources: Resources = Field(default_factory=Resources)
    """Compute resources of each pod's main container."""
    env: Annotated[list[EnvVar], Field(max_length=256, json_schema_extra=list_map("name"))] = Field(
        default_factory=list
    )
    """Environment of the main container."""
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=64)] = Field(
        default_factory=dict
    )
    """Labels that a node must carry."""
    tolerations: Annotated[list[Opaque], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] = Field(
        default_factory=list
    )
    """Taints that the pods tolerate."""
    affinity: Opaque | None = None
    """Affinity rules, added to those that Headrace sets."""
    image_pull_secrets: Annotated[list[LocalReference], Field(max_length=16, json_schema_extra=list_map("name"))] = (
        Field(default_factory=list)
    )
    """Secrets with registry credentials."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods; by default one that may do nothing but report the pod's own progress."""


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> timedelta:
    """A Go duration string as a timedelta.

    Raises:
        ValueError: the text is no duration.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise ValueError(f"{text!r} is no duration; write it like 250ms, 30s or 1h30m")
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))


_SUFFIXES = {
    "": 1.0,
    **{suffix: 1000.0**power for suffix, power in zip("numkMGTPE", (-3, -2, -1, 1, 2, 3, 4, 5, 6), strict=True)},
    **{f"{suffix}i": 1024.0**power for power, suffix in enumerate("KMGTPE", 1)},
}


def parse_quantity(value: int | str) -> float:
    """The number that a Kubernetes quantity means, in the resource's base unit (cores, bytes).

    Raises:
        ValueError: the text is no quantity.
    """
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9.]+)?)([numkMGTPE]|[KMGTPE]i)?", str(value))
    if match is None:
        raise ValueError(f"{value!r} is no quantity; write it like 500m, 2 or 1Gi")
    return float(match[1]) * _SUFFIXES[match[2] or ""]


def rfc3339(moment: datetime) -> str:
    """A moment as Kubernetes writes metav1.Time: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
