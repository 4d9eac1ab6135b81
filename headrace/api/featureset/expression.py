"""The language of a FeatureSet's transform: expressions over columns, checked before anything runs.

An expression is written as in Python or SQL, `clip(amount / mean_amount, 0, 10)`, and is parsed into a tree of calls
to a fixed set of functions: there are no loops, no attributes, no other names, so it always ends and touches nothing.
Every node has a type that is known before there is data. `canonical` is the tree as text, without spaces and optional
brackets: hashes are made of it, so they change when the meaning does and not when the layout does.

Values are rows of columns. Null means unknown: a function of null is null, save for `coalesce`, `is_null`, `if` (null
where its condition is) and `and`/`or` (Kleene's logic, as in SQL). NaN is a value like others. Int64 wraps around;
division of floats by zero is infinite or NaN (IEEE 754); `//` and `%` of integers by zero are null.
"""

from __future__ import annotations

import ast
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

ValueType = Literal["Bool", "Int64", "Float64", "String", "Timestamp"]
"""Types that expressions compute with. Int32 and Float32 columns are widened."""
MAX_LENGTH = 1000
MAX_DEPTH = 40


class ExpressionError(ValueError):
    """An expression that means nothing: what was found where, and what would be right."""


@dataclass(frozen=True, slots=True)
class Name:
    """A column, an input of the request, an entity's key or another feature."""

    name: str
    type: ValueType

    @property
    def canonical(self) -> str:
        return f"{self.name}:{self.type}"


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal."""

    value: bool | int | float | str
    type: ValueType

    @property
    def canonical(self) -> str:
        return json.dumps(self.value, ensure_ascii=True)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of other nodes; operators are functions too."""

    function: str
    arguments: tuple[Node, ...]
    type: ValueType

    @property
    def canonical(self) -> str:
        return f"{self.function}({','.join(item.canonical for item in self.arguments)})"


Node = Name | Constant | Call
Signature = Callable[[str, Sequence[Node]], ValueType]


def names(node: Node) -> Iterator[str]:
    """Every name in the tree, as often as it is used."""
    if isinstance(node, Name):
        yield node.name
    elif isinstance(node, Call):
        for item in node.arguments:
            yield from names(item)


def parse(text: str, known: Mapping[str, ValueType]) -> Node:
    """The tree of an expression.

    Args:
        text: The expression.
        known: Names that it may use, with their types.

    Raises:
        ExpressionError: It cannot be read, uses an unknown name or function, or types do not fit.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"has {len(text)} characters: write at most {MAX_LENGTH}, with features for the parts")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        said = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        raise ExpressionError(
            f"{text!r} cannot be read ({said}): write an expression such as log1p(trips) or amount / mean_amount"
        ) from error
    return _Reader(text, known).read(tree, 0)


_BINARY: Mapping[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.FloorDiv: "floor_divide",
    ast.Mod: "modulo",
    ast.Pow: "power",
}
_COMPARED: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}


class _Reader:
    def __init__(self, text: str, known: Mapping[str, ValueType]) -> None:
        self._text = text
        self._known = known

    def read(self, node: ast.expr, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"{self._text!r} is nested more than {MAX_DEPTH} deep: write features for its parts")
        inner = depth + 1
        match node:
            case ast.Name(id=name):
                return self._name(name)
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return _constant(value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(
                value, bool
            ):
                return _constant(-value)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return _call("negate", [self.read(operand, inner)])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return _call("not", [self.read(operand, inner)])
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _BINARY:
                return _call(_BINARY[type(operator)], [self.read(left, inner), self.read(right, inner)])
            case ast.BoolOp(op=operator, values=values):
                return _call("and" if isinstance(operator, ast.And) else "or", [self.read(v, inner) for v in values])
            case ast.Compare(left=left, ops=operators, comparators=others) if all(
                type(operator) in _COMPARED for operator in operators
            ):
                sides = [self.read(item, inner) for item in (left, *others)]
                parts = [
                    _call(_COMPARED[type(operator)], [sides[index], sides[index + 1]])
                    for index, operator in enumerate(operators)
                ]
                return parts[0] if len(parts) == 1 else _call("and", parts)
            case ast.IfExp(test=test, body=body, orelse=other):
                return _call("if", [self.read(test, inner), self.read(body, inner), self.read(other, inner)])
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                if name not in WRITABLE:
                    raise ExpressionError(
                        f"{self._text!r} calls {name!r}, which there is not: use {', '.join(sorted(WRITABLE))}"
                    )
                return _call(name, [self.read(item, inner) for item in arguments])
        raise ExpressionError(
            f"{ast.unparse(node)!r} in {self._text!r} is no part of the language: use names, numbers, texts, "
            "+ - * / // % **, comparisons, and/or/not, `a if c else b`, and the functions of docs/features.md"
        )

    def _name(self, name: str) -> Name:
        if name not in self._known:
            raise ExpressionError(
                f"{self._text!r} uses {name!r}, which is no column, request input or earlier feature: "
                f"declare it, or use one of {', '.join(sorted(self._known)[:30])}"
            )
        return Name(name, self._known[name])


def _constant(value: bool | int | float | str) -> Constant:
    if isinstance(value, bool):
        return Constant(value, "Bool")
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ExpressionError(f"{value} does not fit in 64 bits: write it as a float, such as 1e20")
        return Constant(value, "Int64")
    return Constant(value, "Float64" if isinstance(value, float) else "String")


def _call(function: str, arguments: Sequence[Node]) -> Call:
    return Call(function, tuple(arguments), FUNCTIONS[function](function, arguments))


def _refuse(function: str, arguments: Sequence[Node], wanted: str) -> ExpressionError:
    found = ", ".join(item.type for item in arguments) or "nothing"
    return ExpressionError(f"{function} of ({found}): it takes {wanted}")


_NUMBERS = ("Int64", "Float64")


def _common(function: str, arguments: Sequence[Node]) -> ValueType:
    types = {item.type for item in arguments}
    if types == {"Int64", "Float64"}:
        return "Float64"
    if len(types) == 1:
        return types.pop()
    raise _refuse(function, arguments, "values of one type")


def _numeric(least: int, most: int) -> Signature:
    """As many numbers: Int64 when all are, else Float64."""

    def signature(function: str, arguments: Sequence[Node]) -> ValueType:
        if not least <= len(arguments) <= most or any(item.type not in _NUMBERS for item in arguments):
            count = str(least) if least == most else f"{least} to {most}"
            raise _refuse(function, arguments, f"{count} numbers")
        return _common(function, arguments)

    return signature


def _real(count: int) -> Signature:
    """As many numbers, to Float64."""

    def signature(function: str, arguments: Sequence[Node]) -> ValueType:
        _numeric(count, count)(function, arguments)
        return "Float64"

    return signature


def _fixed(result: ValueType, *types: ValueType) -> Signature:
    def signature(function: str, arguments: Sequence[Node]) -> ValueType:
        if tuple(item.type for item in arguments) != types:
            raise _refuse(function, arguments, ", ".join(types))
        return result

    return signature


def _many(result: ValueType, type_: ValueType) -> Signature:
    def signature(function: str, arguments: Sequence[Node]) -> ValueType:
        if len(arguments) < 2 or any(item.type != type_ for item in arguments):
            raise _refuse(function, arguments, f"two or more {type_}")
        return result

    return signature


def _comparison(function: str, arguments: Sequence[Node]) -> ValueType:
    if _common(function, arguments) == "Bool" and function not in ("equal", "not_equal"):
        raise _refuse(function, arguments, "numbers, texts or times")
    return "Bool"


def _choice(function: str, arguments: Sequence[Node]) -> ValueType:
    if len(arguments) != 3 or arguments[0].type != "Bool":
        raise _refuse(function, arguments, "a condition and two values of one type")
    return _common(function, arguments[1:])


def _coalesce(function: str, arguments: Sequence[Node]) -> ValueType:
    if len(arguments) < 2:
        raise _refuse(function, arguments, "two or more values of one type")
    return _common(function, arguments)


def _any_one(function: str, arguments: Sequence[Node]) -> ValueType:
    if len(arguments) != 1:
        raise _refuse(function, arguments, "one value")
    return "Bool"


def _cast(result: ValueType) -> Signature:
    def signature(function: str, arguments: Sequence[Node]) -> ValueType:
        if len(arguments) != 1 or arguments[0].type not in (*_NUMBERS, "Bool"):
            raise _refuse(function, arguments, "one number or Bool")
        return result

    return signature


def _bucket(function: str, arguments: Sequence[Node]) -> ValueType:
    bounds = [item.value for item in arguments[1:] if isinstance(item, Constant) and item.type in _NUMBERS]
    rising = all(a < b for a, b in itertools.pairwise(bounds))  # type: ignore[operator]
    if len(arguments) < 2 or arguments[0].type not in _NUMBERS or len(bounds) != len(arguments) - 1 or not rising:
        raise _refuse(function, arguments, "a number and bounds written as rising numbers, such as bucket(age, 18, 65)")
    return "Int64"


def _hash_bucket(function: str, arguments: Sequence[Node]) -> ValueType:
    count = arguments[1] if len(arguments) == 2 else None
    counted = isinstance(count, Constant) and count.type == "Int64" and int(count.value) > 0
    if not counted or arguments[0].type not in ("String", "Int64"):
        raise _refuse(function, arguments, "a String or Int64 and how many buckets, such as hash_bucket(city, 64)")
    return "Int64"


_OPERATORS: dict[str, Signature] = {
    **{name: _numeric(2, 2) for name in ("add", "subtract", "multiply", "floor_divide", "modulo")},
    "divide": _real(2),
    "power": _real(2),
    "negate": _numeric(1, 1),
    **dict.fromkeys(_COMPARED.values(), _comparison),
    "and": _many("Bool", "Bool"),
    "or": _many("Bool", "Bool"),
    "not": _fixed("Bool", "Bool"),
    "if": _choice,
}
WRITABLE: dict[str, Signature] = {
    "abs": _numeric(1, 1),
    "least": _numeric(2, 16),
    "greatest": _numeric(2, 16),
    "clip": _numeric(3, 3),
    **{name: _real(1) for name in ("log", "log1p", "exp", "sqrt", "floor", "ceil", "round")},
    "haversine_km": _real(4),
    "float": _cast("Float64"),
    "int": _cast("Int64"),
    "coalesce": _coalesce,
    "is_null": _any_one,
    "bucket": _bucket,
    "hash_bucket": _hash_bucket,
    "lower": _fixed("String", "String"),
    "upper": _fixed("String", "String"),
    "length": _fixed("Int64", "String"),
    "concat": _many("String", "String"),
    "hour": _fixed("Int64", "Timestamp"),
    "weekday": _fixed("Int64", "Timestamp"),
    "seconds_between": _fixed("Float64", "Timestamp", "Timestamp"),
}
"""Functions by the name that people write."""
FUNCTIONS: Mapping[str, Signature] = {**_OPERATORS, **WRITABLE}
"""Every function; a row's evaluator has one implementation for each."""
