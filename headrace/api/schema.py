"""The base of every API model, and what a model says about itself beyond its fields.

A model is the single source of three things: the CRD's OpenAPI schema, validation in Python, and the SDK's
types. Attribute docstrings become field descriptions (``kubectl explain``), aliases are camelCase, unknown fields
are refused. What plain JSON schema cannot say is said here: CEL rules, list-maps, opaque Kubernetes objects and
the kind's own names, columns and scale paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
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

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        for rule in type(self).cel_rules:
            if rule.check is not None and not rule.check(self):
                raise ValueError(f"{rule.field_path}: {rule.message}" if rule.field_path else rule.message)
        return self

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
        check: The same rule in Python, which validates the model; None where only the API server can tell
            (transitions, names).
        of: Field (camelCase) whose own schema has the rule, with that field as ``self``; the object's by default. The
            API server builds the whole object's CEL type anew for each field that a rule reads, so in objects with
            many fields this is much the cheaper place.
        on_update: CEL condition under which the rule holds for updates too (of the status as well, of which each asks
            for all rules of the spec anew); "false" for what can be wrong only when the object is made.
    """

    rule: str
    message: str
    field_path: str | None = None
    check: Callable[[Any], bool] | None = None
    of: str | None = None
    on_update: str = "true"


M = TypeVar("M", bound=type[Model])


def rules(*entries: Rule) -> Callable[[M], M]:
    """Attach CEL rules to a model; rules of base classes are kept."""

    def attach(model: M) -> M:
        model.cel_rules = (*model.cel_rules, *entries)
        return model

    return attach


def once(*entries: Rule, unless: str = "false") -> tuple[Rule, ...]:
    """Rules about fields that stay as they were: there is nothing to check when something else is updated.

    Args:
        entries: The rules.
        unless: CEL condition under which one of their fields may change, so that updates are checked.
    """
    return tuple(replace(rule, on_update=unless) for rule in entries)


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


def remedy(rule: str, message: str) -> dict[str, Any]:
    """``json_schema_extra`` of a scalar: a CEL rule whose message says what would be right, as no bare pattern can."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message}]}


def name_rules(longest: int, child: str) -> tuple[Rule, ...]:
    """Rules of a kind whose children are named after it: the name starts a Service's name (RFC 1035 label).

    Args:
        longest: Characters that leave room for the longest suffix.
        child: How the longest child is named, for the message.
    """
    return once(
        Rule(
            f"self.metadata.name.size() <= {longest}",
            f"metadata.name: at most {longest} characters, so that {child} fits in 63: choose a shorter name",
            ".metadata",
        ),
        Rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name: it names a Service, so start with a letter and use lower case letters, digits and '-'",
            ".metadata",
        ),
    )


LIST_ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}

Opaque = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""A Kubernetes object that the API server checks when the child is made; kept as it is, not inlined in our schema."""

_DURATION = r"^([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h))+$"
_DURATION_REMEDY = "write a duration such as 250ms, 30s, 5m or 1h30m"

Duration = Annotated[
    str,
    Field(
        pattern=_DURATION,
        max_length=32,
        examples=["250ms", "30s", "1h30m"],
        json_schema_extra=remedy(f"self.matches(r'{_DURATION}')", _DURATION_REMEDY),
    ),
]
"""A Go duration such as ``250ms``, ``30s`` or ``1h30m``."""


def _above_zero(text: str) -> str:
    if not re.search("[1-9]", text):
        raise ValueError(
            f"a time of {text} is over before anything can answer: write one above zero, such as 250ms or 1s"
        )
    return text


PositiveDuration = Annotated[
    str,
    Field(
        pattern=_DURATION,
        max_length=32,
        examples=["250ms", "1s", "5m"],
        json_schema_extra=remedy(
            f"self.matches(r'{_DURATION}') && self.matches('[1-9]')", f"{_DURATION_REMEDY}, above zero"
        ),
    ),
    AfterValidator(_above_zero),
]
"""A Go duration above zero."""

_QUANTITY = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)


def _quantity(value: int | str) -> int | str:
    if isinstance(value, str) and not re.match(_QUANTITY, value):
        raise ValueError(f"{value!r} is no quantity: write it like 500m, 2 or 1Gi")
    return value


Quantity = Annotated[
    int | str,
    AfterValidator(_quantity),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": _QUANTITY,
            "maxLength": 32,
            **remedy("type(self) == int || isQuantity(string(self))", "write a quantity such as 500m, 2 or 1Gi"),
        }
    ),
]
"""A Kubernetes quantity such as ``500m``, ``2`` or ``1Gi``."""

_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

DNSLabel = Annotated[
    str,
    Field(
        pattern=_LABEL,
        min_length=1,
        max_length=63,
        json_schema_extra=remedy(
            f"self.matches(r'{_LABEL}')", "use lower case letters, digits and '-', with a letter or digit at both ends"
        ),
    ),
]
"""An RFC 1123 label."""

ObjectName = Annotated[
    str,
    Field(
        pattern=_NAME,
        min_length=1,
        max_length=253,
        json_schema_extra=remedy(
            f"self.matches(r'{_NAME}')",
            "write the name of an object in this namespace: lower case letters, digits, '-' and '.'",
        ),
    ),
]
"""An RFC 1123 subdomain, the name of most Kubernetes objects."""

_URI = r"^(s3|hdfs|file)://[^\s]+$"

StorageURI = Annotated[
    str,
    Field(
        pattern=_URI,
        max_length=1024,
        examples=["s3://models/digits", "hdfs://namenode:8020/models/digits", "file:///mnt/models/digits"],
        json_schema_extra=remedy(
            f"self.matches(r'{_URI}')",
            "write a storage address such as s3://bucket/path, hdfs://namenode:8020/path or file:///path",
        ),
    ),
]
"""A folder or a file in storage: ``s3://``, ``hdfs://`` or ``file://``."""

ImageName = Annotated[
    str,
    Field(
        pattern=r"^[^\s]+$",
        min_length=1,
        max_length=1024,
        json_schema_extra=remedy(
            r"self.matches(r'^[^\s]+$')", "write an image such as registry.example/team/image:tag"
        ),
    ),
]
"""A container image."""
