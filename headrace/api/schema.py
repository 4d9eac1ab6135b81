"""The base of every API model, and what a model says about itself beyond its fields.

A model is the single source of three things: the CRD's OpenAPI schema, validation in Python, and the SDK's
types. Attribute docstrings become field descriptions (``kubectl explain``), aliases are camelCase, unknown fields
are refused. What plain JSON schema cannot say is said here: CEL rules, list-maps, opaque Kubernetes objects and
the kind's own names, columns and scale paths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP = "headrace.dev"
VERSION = "v1alpha1"


class Model(BaseModel):
    """Immutable camelCase model that refuses unknown fields; the base of all specs and statuses."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )
    cel_rules: ClassVar[tuple[Rule, ...]] = ()

    def manifest(self) -> dict[str, Any]:
        """The value as Kubernetes JSON: camelCase keys, unset optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``x-kubernetes-validations`` entry of the object schema it is attached to.

    Attributes:
        rule: CEL expression over ``self`` (and ``oldSelf`` for transition rules).
        message: What was wrong and what would be right; names the field.
        field_path: JSON path of the field that the message is about, such as ``.maxReplicas``.
    """

    rule: str
    message: str
    field_path: str | None = None


M = TypeVar("M", bound=type[Model])


def rules(*entries: Rule) -> Callable[[M], M]:
    """Attach CEL rules to a model; rules of base classes are kept."""

    def attach(model: M) -> M:
        model.cel_rules = (*model.cel_rules, *entries)
        return model

    return attach


@dataclass(frozen=True, slots=True)
class Column:
    """An ``additionalPrinterColumns`` entry: what ``kubectl get`` shows. ``priority`` 1 shows with ``-o wide`` only."""

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale subresource's paths (``kubectl scale``, HorizontalPodAutoscaler)."""

    spec_path: str
    status_path: str
    selector_path: str | None = None


@dataclass(frozen=True, slots=True)
class KindInfo:
    """The names of a kind as the API server knows them."""

    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    scale: Scale | None = None
    group: str = GROUP
    version: str = VERSION

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}"


def list_map(*keys: str) -> dict[str, Any]:
    """``json_schema_extra`` of a list that merges by the named keys under server-side apply."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


LIST_ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}

Opaque = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""A Kubernetes object that the API server checks when the child is made; kept as it is, not inlined in our schema."""

Duration = Annotated[
    str,
    Field(pattern=r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", max_length=32, examples=["30s", "5m", "1h30m", "250ms"]),
]
"""A Go duration such as ``250ms``, ``30s`` or ``1h30m``."""

Quantity = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": (
                r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
                r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
            ),
        }
    ),
]
"""A Kubernetes quantity such as ``500m``, ``2`` or ``1Gi``."""

DNSLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)]
"""An RFC 1123 label."""

ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]
"""An RFC 1123 subdomain, the name of most Kubernetes objects."""

StorageURI = Annotated[
    str,
    Field(
        pattern=r"^(s3|hdfs|file)://[^\s]+$",
        max_length=1024,
        examples=["s3://models/digits", "hdfs://namenode:8020/models/digits", "file:///mnt/models/digits"],
    ),
]
"""A folder or a file in storage: ``s3://``, ``hdfs://`` or ``file://``."""
