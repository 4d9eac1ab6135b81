"""Whether an object already carries what we want of it, so that writing it again would change nothing.

The API server answers with more than it was sent (defaults, what other managers set) and sometimes with the same
thing in other words (`1000m` is `1`). So what is wanted is compared as a subset, list-maps by their keys, and
quantities by value. A wrong «differs» costs one write that changes nothing; a wrong «carries it» would leave drift in
place, so where the rules below do not know better they say «differs».
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

LIST_KEYS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "containers": (("name",),),
    "initContainers": (("name",),),
    "ephemeralContainers": (("name",),),
    "env": (("name",),),
    "volumes": (("name",),),
    "volumeMounts": (("mountPath",),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
    "imagePullSecrets": (("name",),),
    "hostAliases": (("ip",),),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "resourceClaims": (("name",),),
    "ownerReferences": (("uid",),),
    "conditions": (("type",),),
}
"""Merge keys of the lists in which other managers may own further items, by field name (`x-kubernetes-list-map-keys` of
Kubernetes' OpenAPI). Every other list is atomic: it is ours as a whole."""

QUANTITY_PARENTS: Final = frozenset({"requests", "limits", "capacity", "hard", "allocatable", "overhead"})
"""Maps whose values are quantities."""
QUANTITY_FIELDS: Final = frozenset({"sizeLimit", "averageValue", "divisor", "value"})
"""Fields that are quantities; `value` only inside a metric's target."""

_QUANTITY = re.compile(r"^([+-]?[0-9.]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$")
_SUFFIXES: Final[Mapping[str, Decimal]] = {
    **{suffix: Decimal(10) ** (3 * power) for power, suffix in enumerate(("n", "u", "m", "", "k", "M"), start=-3)},
    **{suffix: Decimal(10) ** (3 * power) for power, suffix in enumerate(("G", "T", "P", "E"), start=3)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}


def parse_quantity(value: str | int | float) -> Decimal:
    """The value of a Kubernetes quantity.

    Raises:
        ValueError: It is none.
    """
    match = _QUANTITY.match(str(value))
    if match is None:
        raise ValueError(f"{value!r} is no quantity; write it like 500m, 2 or 1Gi")
    number, suffix = match[1], match[2] or ""
    try:
        if suffix[-1:].isdigit():
            return Decimal(number + suffix)
        return Decimal(number) * _SUFFIXES[suffix]
    except ArithmeticError as error:
        raise ValueError(f"{value!r} is no quantity; write it like 500m, 2 or 1Gi") from error


def carries(observed: Any, wanted: Any, path: tuple[str, ...] = ()) -> bool:
    """Whether `observed` has everything that `wanted` says.

    Args:
        observed: Part of an object as the API server returned it.
        wanted: The same part as we would apply it; None and empty containers mean «nothing».
        path: Field names from the object's root, which decide on merge keys and quantities.
    """
    if wanted is None or wanted in ({}, []):
        return observed is None or observed in ({}, []) or isinstance(wanted, dict)
    if isinstance(wanted, Mapping):
        return isinstance(observed, Mapping) and all(
            carries(observed.get(field), value, (*path, field)) for field, value in wanted.items()
        )
    if isinstance(wanted, (list, tuple)):
        return isinstance(observed, list) and _list_carries(observed, wanted, path)
    if isinstance(wanted, bool) or isinstance(observed, bool):
        return wanted is observed
    if _is_quantity(path) and observed is not None:
        try:
            return parse_quantity(observed) == parse_quantity(wanted)
        except ValueError:
            return bool(observed == wanted)
    if wanted == "" and observed is None:
        return True  # the server leaves out empty strings where the field is optional
    return bool(observed == wanted)


def _list_carries(observed: Sequence[Any], wanted: Sequence[Any], path: tuple[str, ...]) -> bool:
    for keys in LIST_KEYS.get(path[-1] if path else "", ()):
        if not all(isinstance(item, Mapping) and keys[0] in item for item in wanted):
            continue
        index = {_identity(item, keys): item for item in observed if isinstance(item, Mapping)}
        return all(carries(index.get(_identity(item, keys)), item, path) for item in wanted)
    return len(observed) == len(wanted) and all(
        carries(mine, theirs, path) for mine, theirs in zip(observed, wanted, strict=True)
    )


def _identity(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    # `protocol` is the one merge key with a default.
    return tuple(item.get(key, "TCP" if key == "protocol" else None) for key in keys)


def _is_quantity(path: tuple[str, ...]) -> bool:
    if len(path) >= 2 and path[-2] in QUANTITY_PARENTS:
        return True
    return bool(path) and path[-1] in QUANTITY_FIELDS and (path[-1] != "value" or "target" in path)
