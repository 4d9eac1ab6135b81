"""The transform: what expressions mean, and that one row alone gives the bits that it gives among many."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace.api.featureset import ExpressionError, FeatureSetSpec, differences
from headrace.api.featureset.expression import FUNCTIONS, parse
from headrace.features.columns import Column, from_values, to_values
from headrace.features.functions import IMPLEMENTATIONS
from headrace.features.transform import Evaluator

COLUMNS = {"a": "Int64", "b": "Int64", "x": "Float64", "y": "Float64", "s": "String", "t": "Timestamp", "ok": "Bool"}


def spec(expressions: dict[str, tuple[str, str]], **more: Any) -> FeatureSetSpec:
    """A spec with the given features: type and expression by name."""
    columns = [{"name": name, "type": type_} for name, type_ in COLUMNS.items()]
    features = [{"name": name, "type": type_, "expression": text} for name, (type_, text) in expressions.items()]
    return FeatureSetSpec.model_validate(
        {
            "entities": [{"name": "id"}],
            "source": {"uri": "file:///tmp/x", "timestampColumn": "ts", "columns": columns},
            "features": features,
        }
        | more
    )


def evaluate(text: str, type_: str, **row: Any) -> Any:
    """The value of an expression for one row."""
    transform = spec({"f": (type_, text)}).transform()
    columns = {name: from_values(name, kind, [row.get(name)]) for name, kind in COLUMNS.items()}
    return to_values(Evaluator(transform).kept(columns)["f"])[0]


@pytest.mark.parametrize(
    ("text", "type_", "row", "expected"),
    [
        ("a + b * 2", "Int64", {"a": 1, "b": 3}, 7),
        ("a / b", "Float64", {"a": 1, "b": 4}, 0.25),
        ("a // b", "Int64", {"a": -7, "b": 2}, -4),  # Python's and SQL's floor
        ("a % b", "Int64", {"a": 7, "b": 0}, None),
        ("x / y", "Float64", {"x": 1.0, "y": 0.0}, math.inf),
        ("a + x", "Float64", {"a": 1, "x": 0.5}, 1.5),
        ("a + b", "Int64", {"a": 1}, None),
        ("coalesce(a, b, 9)", "Int64", {}, 9),
        ("coalesce(a, x)", "Float64", {"a": 3}, 3.0),
        ("is_null(a)", "Bool", {}, True),
        ("x > 1 and ok", "Bool", {"x": 0.0}, False),  # Kleene: one False decides
        ("x > 1 or ok", "Bool", {"x": 0.0}, None),
        ("0 < x <= 1", "Bool", {"x": 1.0}, True),
        ("a if ok else b", "Int64", {"a": 1, "ok": False, "b": 5}, 5),
        ("a if ok else b", "Int64", {"a": 1, "b": 5}, None),
        ("clip(x, 0, 1)", "Float64", {"x": 7.5}, 1.0),
        ("least(a, x)", "Float64", {"a": 3, "x": 2.5}, 2.5),
        ("int(x)", "Int64", {"x": -2.9}, -2),
        ("round(x)", "Float64", {"x": 2.5}, 2.0),  # IEEE 754: half to even
        ("bucket(a, 18, 65)", "Int64", {"a": 18}, 1),
        ("hash_bucket(s, 1000)", "Int64", {"s": "123456789"}, 0xCBF43926 % 1000),  # CRC-32's check value
        ("concat(lower(s), '!')", "String", {"s": "ÅB"}, "åb!"),
        ("length(s)", "Int64", {"s": "åb"}, 2),
        ("hour(t)", "Int64", {"t": "2026-11-25T23:30:00+01:00"}, 22),
        ("weekday(t)", "Int64", {"t": "2026-11-25T00:00:00Z"}, 2),  # a Wednesday
        ("seconds_between(t, t)", "Float64", {"t": "2026-11-25T00:00:00Z"}, 0.0),
        # A quarter of the meridian, 10,007.6 km on a sphere of the mean radius.
        ("haversine_km(0.0, 0.0, 90.0, 0.0)", "Float64", {}, math.pi / 2 * 6371.0088),
    ],
)
def test_an_expression_gives(text: str, type_: str, row: dict[str, Any], expected: Any) -> None:
    found = evaluate(text, type_, **row)
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-15)
    else:
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a +", "cannot be read"),
        ("nothing + 1", "'nothing'"),
        ("__import__('os')", "'__import__'"),
        ("a.real", "no part of the language"),
        ("[a for a in b]", "no part of the language"),
        ("(lambda: 1)()", "no part of the language"),
        ("s + 1", "it takes 2 numbers"),
        ("clip(x, 1)", "it takes 3 numbers"),
        ("a if x else b", "a condition"),
        ("bucket(a, 5, 2)", "rising"),
        ("hash_bucket(s, a)", "how many buckets"),
        ("9999999999999999999", "64 bits"),
        ("-" * 900 + "a", "nested"),
        ("(" * 300 + "a" + ")" * 300, "cannot be read"),
    ],
)
def test_what_means_nothing_is_refused_with_the_remedy(text: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=words.replace("(", r"\(")):
        parse(text, COLUMNS)  # type: ignore[arg-type]


def test_every_function_has_an_implementation() -> None:
    assert FUNCTIONS.keys() == IMPLEMENTATIONS.keys()


EXPRESSIONS = {
    "f0": ("Float64", "log1p(abs(x)) * exp(clip(y, -20, 20)) + sqrt(abs(x - y))"),
    "f1": ("Float32", "(abs(x) + 0.1) ** 0.37"),
    "f2": ("Float64", "haversine_km(clip(x, -90, 90), y, clip(y, -90, 90), x)"),
    "f3": ("Int64", "bucket(x, -1, 0, 1) + hash_bucket(s, 97) if ok or a > b else a // b"),
    "f4": ("Float64", "coalesce(log(x), y / a, 0.0) + f0"),
    "f5": ("String", "concat(upper(s), '-', lower(s))"),
}
number = st.none() | st.floats(allow_nan=True, allow_infinity=True)
whole = st.none() | st.integers(-(2**63), 2**63 - 1)
row = st.fixed_dictionaries(
    {
        "a": whole,
        "b": whole,
        "x": number,
        "y": number,
        "s": st.none() | st.text(max_size=8),
        "t": st.none() | st.just("2026-01-01T00:00:00Z"),
        "ok": st.none() | st.booleans(),
    }
)


def bits(column: Column, index: int) -> Any:
    """A value by its bits, so that NaN equals itself and -0.0 is not 0.0."""
    if column.valid is not None and not column.valid[index]:
        return None
    value = column.values[index]
    return value if isinstance(value, str) else np.asarray(value).tobytes()


@settings(max_examples=30, deadline=None)
@given(st.lists(row, min_size=1, max_size=40))
def test_one_row_alone_gives_the_bits_that_it_gives_among_many(rows: list[dict[str, Any]]) -> None:
    evaluator = Evaluator(spec(EXPRESSIONS).transform())

    def run(some: list[dict[str, Any]]) -> dict[str, Column]:
        return evaluator.kept({n: from_values(n, t, [item[n] for item in some]) for n, t in COLUMNS.items()})

    together = run(rows)
    for index, item in enumerate(rows):
        alone = run([item])
        for name in EXPRESSIONS:
            assert bits(alone[name], 0) == bits(together[name], index), name


def test_the_hash_is_of_the_meaning() -> None:
    base = spec({"f": ("Float64", "log1p(x) + 1"), "g": ("Float64", "f * 2")}).transform()
    spaced = spec({"f": ("Float64", "(log1p( x )+1)"), "g": ("Float64", "f*2")}).transform()
    assert spaced.hashes == base.hashes
    assert spaced.hash == base.hash
    # Kept as written: a hash that changed by itself would part every model from its features.
    assert base.hashes == {"f": "c36eef9290b891fb", "g": "5dc020902f312c7a"}
    assert base.hash == "edc0c5658b8be40e"
    other = spec({"f": ("Float64", "log1p(x) + 2"), "g": ("Float64", "f * 2")}).transform()
    assert [line.split(" is ")[0] for line in differences(base.hashes, other.hashes)] == ["feature f", "feature g"]
    assert differences({"f": base.hashes["f"]}, base.hashes) == []
    assert differences({"h": "1"}, base.hashes) == ["feature h was used in training and is not served"]


def test_a_feature_that_uses_an_input_waits_for_the_request_and_what_it_needs_is_kept() -> None:
    made = spec(
        {"km": ("Float64", "x * 2"), "share": ("Float64", "amount / y"), "double": ("Float64", "share * 2")},
        requestInputs=[{"name": "amount", "type": "Float64"}],
    ).transform()
    assert [item.name for item in made.on_request] == ["share", "double"]
    assert dict(made.kept) == {"km": "Float64", "y": "Float64"}


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"entities": [{"name": "x"}]}, "source.columns[2]: 'x' is also entities[0]"),
        ({"requestInputs": [{"name": "and", "type": "Bool"}]}, "requestInputs[0]: 'and' is a word of the expression"),
        (
            {"features": [{"name": "f", "type": "Int64", "expression": "g + 1"}]},
            "features[0].expression: 'g + 1' uses 'g'",
        ),
        ({"features": [{"name": "f", "type": "Int64", "expression": "x * 2"}]}, "its expression gives Float64"),
        ({"features": [{"name": "x", "type": "Float64", "expression": "x * 2"}]}, "features[0].name: 'x' is a column"),
        ({"features": [{"name": "x", "type": "Float32"}]}, "features[0].type: 'x' is declared as Float64"),
        ({"features": [{"name": "if", "type": "Bool", "expression": "ok"}]}, "features[0].name: 'if' is a word"),
    ],
)
def test_a_spec_that_means_two_things_or_nothing_is_refused(patch: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        spec({"f": ("Int64", "a")}, **patch)
    assert words in str(error.value)
