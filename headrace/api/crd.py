"""CustomResourceDefinitions from the API models.

pydantic's JSON Schema is close to what the API server wants, and not the same. `crd` brings it to a structural
schema (apiextensions.k8s.io/v1): every reference is inlined, optional fields are just not required (no ``anyOf`` with
null), constants are enums, exclusive bounds are OpenAPI 3.0 booleans, defaults that a factory makes are written out,
and each model's CEL rules become ``x-kubernetes-validations`` of its object. Kubernetes' own types (`Opaque`) stay
open objects, so that no PodTemplate is ever inlined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, NoDefault
from pydantic_core import core_schema

from headrace.api.meta import Resource
from headrace.api.schema import KindInfo, Model, Rule

Schema = dict[str, Any]

CATEGORY = "headrace"
"""``kubectl get headrace`` lists every resource of the platform."""

UNSEEN: Schema = {
    "conditions": [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "Pending",
            "message": "nothing was reported yet; if this stays, see whether the operator runs",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }
    ]
}
"""The status of a resource until its controller writes one: without any, kstatus (Argo CD, Flux) would take a resource
for well in its first moments, and `kubectl get` would show nothing when no operator runs."""

_RULES = "x-kubernetes-validations"
_DROPPED = frozenset({"title", "$defs"})
_INT32 = 2**31 - 1


class _Generator(GenerateJsonSchema):
    """pydantic's generator with what a structural schema needs and only the models know."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        cls = schema["cls"]
        if issubclass(cls, Model):
            for rule in cls.cel_rules:
                node = result if rule.of is None else result["properties"][rule.of]
                node.setdefault(_RULES, []).append(_validation(rule))
        return result

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default_factory" not in schema:
            return super().get_default_value(schema)
        # Written in full: the API server checks an object's default against its rules before it fills in the inside.
        return _written(schema["default_factory"]()) or NoDefault  # type: ignore[call-arg]


def crd(resource: type[Resource]) -> Schema:
    """The CustomResourceDefinition of a kind.

    Args:
        resource: The kind's model, with `info`, `spec` and `status`.

    Returns:
        The manifest as JSON.

    Raises:
        ValueError: A schema that has no structural form: a type that is a union, or a model that contains itself.
    """
    info = resource.info
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{info.plural}.{info.group}"},
        "spec": {
            "group": info.group,
            "names": {
                "kind": info.kind,
                "listKind": f"{info.kind}List",
                "plural": info.plural,
                "singular": info.singular,
                "shortNames": list(info.short_names),
                "categories": [CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": info.version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": openapi(resource)},
                    "subresources": _subresources(info),
                    "additionalPrinterColumns": [_column(column) for column in info.columns],
                }
            ],
        },
    }


def openapi(resource: type[Resource]) -> Schema:
    """The structural schema of a whole resource."""
    generated = _Generator(by_alias=True).generate(resource.__pydantic_core_schema__, mode="validation")
    root = _structural(generated, generated.get("$defs", {}), ())
    properties = root["properties"]
    result: Schema = {
        "type": "object",
        "description": root["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": {
                "type": "string",
                "description": f"Version of this resource's schema: {resource.info.api_version}.",
            },
            "kind": {"type": "string", "description": f"Kind of this resource: {resource.info.kind}."},
            "metadata": {"type": "object"},
            "spec": properties["spec"],
            "status": _status(properties["status"]),
        },
    }
    if validations := root.get(_RULES):
        result[_RULES] = validations
    return result


def _structural(node: Schema, definitions: Mapping[str, Schema], inside: tuple[str, ...]) -> Schema:
    """One node of pydantic's schema, and all below it, as a structural schema."""
    if reference := node.get("$ref"):
        name = reference.removeprefix("#/$defs/")
        if name in inside:
            raise ValueError(
                f"{name} contains itself, which no structural schema can say: use Opaque for the inner one"
            )
        beside = {key: value for key, value in node.items() if key != "$ref"}
        if rules := [*definitions[name].get(_RULES, ()), *beside.get(_RULES, ())]:
            beside[_RULES] = rules
        return _structural({**definitions[name], **beside}, definitions, (*inside, name))

    result: Schema = {}
    for key, value in node.items():
        match key:
            case _ if key in _DROPPED:
                continue
            case "default" if value is None:
                continue
            case "additionalProperties" if isinstance(value, bool):
                continue
            case "properties":
                result[key] = {name: _structural(child, definitions, inside) for name, child in value.items()}
            case "additionalProperties" | "items":
                result[key] = _structural(value, definitions, inside)
            case "const":
                result["enum"] = [value]
            case "exclusiveMinimum" | "exclusiveMaximum":
                result["minimum" if key == "exclusiveMinimum" else "maximum"] = value
                result[key] = True
            case "examples":
                continue
            case "anyOf" if not node.get("x-kubernetes-int-or-string"):
                raise ValueError(f"a union has no structural form: {value}; give the field one type")
            case _:
                result[key] = value
    if node.get("type") == "integer":
        result["format"] = "int32" if abs(node.get("maximum", _INT32 + 1)) <= _INT32 else "int64"
    if node.get("type") == "number":
        result["format"] = "double"
    if examples := node.get("examples"):
        described = result.get("description", "")
        result["description"] = f"{described} For example {', '.join(map(str, examples))}.".strip()
    return {key: result[key] for key in sorted(result, key=_position)}


_ORDER = ("description", "type", "format", "enum", "default", "required", "properties", "items")


def _position(key: str) -> tuple[int, str]:
    """Readable order of a node's keys: what it is first, its bounds next, its insides last."""
    if key in ("required", "properties", "items", "additionalProperties"):
        return 2, ""
    return (0, f"{_ORDER.index(key)}") if key in _ORDER else (1, key)


def _status(node: Schema) -> Schema:
    """A status as its controller writes it and no more: the API server adds nothing to what was applied.

    A status has one writer, who says all of it each time. So its inner objects are owned as wholes (as metav1's
    OwnerReference is): field by field, their ownership would be most of `metadata.managedFields`, which the API server
    reads and writes at every change of the resource.
    """
    result = {key: value for key, value in node.items() if key != "default"}
    properties = result.get("properties", {})
    result["properties"] = {name: _owned_whole(child) for name, child in properties.items()}
    if "conditions" in properties:
        result["default"] = UNSEEN
    return {key: result[key] for key in sorted(result, key=_position)}


def _owned_whole(node: Schema) -> Schema:
    result = {key: value for key, value in node.items() if key != "default"}
    if "properties" in result:
        result["properties"] = {name: _owned_whole(child) for name, child in result["properties"].items()}
    if "items" in result:
        result["items"] = _owned_whole(result["items"])
    if result.get("type") == "object":
        result["x-kubernetes-map-type"] = "atomic"
    return {key: result[key] for key in sorted(result, key=_position)}


def _written(value: Any) -> Any:
    """A default as JSON without what says nothing: unset fields, empty lists and maps."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        said = {field.alias or name: _written(getattr(value, name)) for name, field in fields.items()}
        return {name: inner for name, inner in said.items() if inner not in (None, {}, [])}
    return value


def _validation(rule: Rule) -> Schema:
    result: Schema = {"rule": rule.rule, "message": rule.message}
    if rule.on_update != "true":
        same = "oldSelf.hasValue()" if rule.on_update == "false" else f"oldSelf.hasValue() && !({rule.on_update})"
        result |= {"rule": f"{same} || ({rule.rule})", "optionalOldSelf": True}
    if rule.field_path:
        result["fieldPath"] = rule.field_path
    return result


def _column(column: Any) -> Schema:
    result: Schema = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    if column.description:
        result["description"] = column.description
    if column.priority:
        result["priority"] = column.priority
    return result


def _subresources(info: KindInfo) -> Schema:
    result: Schema = {"status": {}}
    if scale := info.scale:
        result["scale"] = {"specReplicasPath": scale.spec_path, "statusReplicasPath": scale.status_path}
        if scale.selector_path:
            result["scale"]["labelSelectorPath"] = scale.selector_path
    return result
