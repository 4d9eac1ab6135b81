"""What the features of a spec mean: a tree each, which of them wait for the request, and hashes of it all.

The hash of a feature covers all that its values follow from: its type, its expression with every name replaced by what
it stands for, the types of the columns below, the entities' keys, the timestamp column and the ttl. The hash of the set
covers the features' names and hashes in order. Both are SHA-256 of a canonical text, so they are the same on every
machine and in every version of Headrace that has the same `LANGUAGE`.
"""

from __future__ import annotations

import hashlib
import json
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.api.featureset.expression import (
    Call,
    Constant,
    ExpressionError,
    Name,
    Node,
    ValueType,
    names,
    parse,
)

if TYPE_CHECKING:
    from headrace.api.featureset.spec import FeatureSetSpec

LANGUAGE = 1
"""Version of the functions' meaning; a change of what any function returns raises it, and with it every hash."""
WIDENED: Mapping[str, ValueType] = {
    "Bool": "Bool",
    "Int32": "Int64",
    "Int64": "Int64",
    "Float32": "Float64",
    "Float64": "Float64",
    "String": "String",
    "Timestamp": "Timestamp",
}
"""What a column's type is computed as."""
_FITS: Mapping[ValueType, frozenset[str]] = {
    "Bool": frozenset({"Bool"}),
    "Int64": frozenset({"Int32", "Int64", "Float32", "Float64"}),
    "Float64": frozenset({"Float32", "Float64"}),
    "String": frozenset({"String"}),
    "Timestamp": frozenset({"Timestamp"}),
}
"""Types that a feature may declare for what its expression gives."""


@dataclass(frozen=True, slots=True)
class Computed:
    """One feature.

    Attributes:
        name: Its name.
        type: Its declared type.
        node: Its expression; names in it are columns, inputs, keys or features before it.
        on_request: It waits for the request: an input is used, by itself or by a feature that it uses.
        hash: Of all that its values follow from, 16 hexadecimal digits.
    """

    name: str
    type: str
    node: Node
    on_request: bool
    hash: str


@dataclass(frozen=True, slots=True)
class Transform:
    """All features of a spec.

    Attributes:
        entities: Keys with their types.
        timestamp: The timestamp column.
        columns: Columns read from the source with their declared types, without keys and timestamp.
        inputs: Request inputs with their declared types.
        features: In the order of the spec.
        kept: Names and declared types that the online store keeps, in order: features that do not wait for the request,
            then columns that those which do wait need.
        ttl: As written in the spec; empty for none.
        hash: Of the set, 16 hexadecimal digits.
    """

    entities: Mapping[str, str]
    timestamp: str
    columns: Mapping[str, str]
    inputs: Mapping[str, str]
    features: Sequence[Computed]
    kept: Mapping[str, str]
    ttl: str
    hash: str

    @property
    def hashes(self) -> dict[str, str]:
        """Hash of each feature by its name."""
        return {item.name: item.hash for item in self.features}

    @property
    def on_request(self) -> tuple[Computed, ...]:
        """Features that are computed when they are asked for."""
        return tuple(item for item in self.features if item.on_request)


def differences(trained: Mapping[str, str], served: Mapping[str, str]) -> list[str]:
    """Why features at serving are not those of training; empty when they are.

    Args:
        trained: Hashes by name of the features that a model was trained with.
        served: Those of the FeatureSet that is to serve it; further features do not matter.
    """
    found: list[str] = []
    for name, hash_ in trained.items():
        if name not in served:
            found.append(f"feature {name} was used in training and is not served")
        elif served[name] != hash_:
            found.append(f"feature {name} is computed differently: {hash_} in training, {served[name]} now")
    return found


def transform_of(spec: FeatureSetSpec) -> Transform:
    """Read every expression.

    Raises:
        ExpressionError: One means nothing; the message begins with its field.
    """
    keys = {item.name: item.type for item in spec.entities}
    timestamp = spec.source.timestamp_column
    columns: dict[str, str] = {item.name: item.type for item in spec.source.columns}
    inputs = {item.name: item.type for item in spec.request_inputs}
    for index, feature in enumerate(spec.features):
        _own_meaning(
            f"features[{index}]", feature.name, feature.type, feature.expression or "", columns, {**keys, **inputs}
        )
        # A feature without an expression is the column of its name, which need not be declared again.
        if not feature.expression and feature.name not in inputs:
            columns[feature.name] = feature.type
    known: dict[str, ValueType] = {timestamp: "Timestamp"}
    known |= {name: WIDENED[type_] for name, type_ in {**keys, **columns, **inputs}.items()}
    meanings = {
        name: f"{name}:{type_}" for name, type_ in {timestamp: "Timestamp", **keys, **columns, **inputs}.items()
    }
    common = [LANGUAGE, list(keys.items()), timestamp, spec.ttl or ""]
    computed: dict[str, Computed] = {}
    for index, feature in enumerate(spec.features):
        try:
            node = parse(feature.expression or feature.name, known)
        except ExpressionError as error:
            raise ExpressionError(f"features[{index}].expression: {error}") from error
        if feature.type not in _FITS[node.type]:
            raise ExpressionError(
                f"features[{index}].type: {feature.name} is {feature.type} and its expression gives {node.type}: "
                f"declare {' or '.join(sorted(_FITS[node.type]))}, or convert with int() or float()"
            )
        used = set(names(node))
        waits = bool(used & set(inputs)) or any(name in computed and computed[name].on_request for name in used)
        meaning = _expanded(node, meanings)
        computed[feature.name] = Computed(
            feature.name, feature.type, node, waits, _digest([*common, feature.type, meaning])
        )
        known.setdefault(feature.name, WIDENED[feature.type])
        meanings.setdefault(feature.name, f"{feature.type}({meaning})")
    kept = {item.name: item.type for item in computed.values() if not item.on_request}
    wanted = dict.fromkeys(name for item in computed.values() if item.on_request for name in names(item.node))
    kept |= {name: columns[name] for name in wanted if name in columns and name not in kept}
    return Transform(
        entities=keys,
        timestamp=timestamp,
        columns=columns,
        inputs=inputs,
        features=tuple(computed.values()),
        kept=kept,
        ttl=spec.ttl or "",
        hash=_digest([*common, [[item.name, item.hash] for item in computed.values()]]),
    )


def _own_meaning(
    path: str, name: str, type_: str, expression: str, columns: Mapping[str, str], others: Mapping[str, str]
) -> None:
    """Each name means one thing, wherever it is used."""
    if keyword.iskeyword(name):
        raise ExpressionError(f"{path}.name: {name!r} is a word of the expression language: choose another name")
    declared = {**columns, **others}
    if name in declared and expression:
        raise ExpressionError(
            f"{path}.name: {name!r} is a column, key or request input already: give the feature another name, or leave "
            "out its expression to use that as it is"
        )
    if name in declared and declared[name] != type_:
        raise ExpressionError(
            f"{path}.type: {name!r} is declared as {declared[name]} and the feature as {type_}: write the same type"
        )


def _expanded(node: Node, meanings: Mapping[str, str]) -> str:
    """The canonical text with every name replaced by what it stands for."""
    match node:
        case Name(name=name):
            return meanings[name]
        case Constant():
            return node.canonical
        case Call(function=function, arguments=arguments):
            return f"{function}({','.join(_expanded(item, meanings) for item in arguments)})"


def _digest(value: object) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
