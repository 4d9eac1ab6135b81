"""Does an object carry what we want? Left what the API server returns, right what we apply."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from controllers.runtime.compare import carries, parse_quantity

SAME: list[tuple[str, Any, Any]] = [
    ("equal", {"a": 1}, {"a": 1}),
    ("a default that the server added", {"spec": {"a": 1, "protocol": "TCP"}}, {"spec": {"a": 1}}),
    ("a label of somebody else's", {"labels": {"ours": "1", "theirs": "2"}}, {"labels": {"ours": "1"}}),
    ("an empty map that the server dropped", {"spec": {}}, {"spec": {"nodeSelector": {}}}),
    ("an empty list that the server dropped", {"spec": {}}, {"spec": {"args": []}}),
    ("a null", {"spec": {}}, {"spec": {"affinity": None}}),
    ("an empty string that the server dropped", {"env": [{"name": "A"}]}, {"env": [{"name": "A", "value": ""}]}),
    ("CPU in other words", {"requests": {"cpu": "1"}}, {"requests": {"cpu": "1000m"}}),
    ("CPU as a number", {"limits": {"cpu": "2"}}, {"limits": {"cpu": 2}}),
    ("memory in other words", {"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1024Mi"}}),
    ("half a CPU", {"requests": {"cpu": "500m"}}, {"requests": {"cpu": "0.5"}}),
    ("a size limit", {"emptyDir": {"sizeLimit": "1Gi"}}, {"emptyDir": {"sizeLimit": "1024Mi"}}),
    (
        "an injected sidecar",
        {"containers": [{"name": "main", "image": "a"}, {"name": "proxy", "image": "p"}]},
        {"containers": [{"name": "main", "image": "a"}]},
    ),
    (
        "an injected variable before ours",
        {"env": [{"name": "INJECTED", "value": "x"}, {"name": "A", "value": "1"}]},
        {"env": [{"name": "A", "value": "1"}]},
    ),
    (
        "a Service's port with its defaults",
        {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]},
        {"ports": [{"port": 80}]},
    ),
    (
        "a second owner",
        {"ownerReferences": [{"uid": "other"}, {"uid": "us", "controller": True}]},
        {"ownerReferences": [{"uid": "us", "controller": True}]},
    ),
    ("defaults inside an atomic list", {"ingress": [{"from": [1], "x": 1}]}, {"ingress": [{"from": [1]}]}),
]

DIFFERENT: list[tuple[str, Any, Any]] = [
    ("another value", {"a": 1}, {"a": 2}),
    ("a field that is missing", {}, {"a": 1}),
    (
        "a container's image",
        {"containers": [{"name": "m", "image": "a"}]},
        {"containers": [{"name": "m", "image": "b"}]},
    ),
    ("a container that is missing", {"containers": []}, {"containers": [{"name": "m"}]}),
    ("an item put into a list that is ours as a whole", {"args": ["a", "b"]}, {"args": ["a"]}),
    ("the order of a list that is ours as a whole", {"args": ["b", "a"]}, {"args": ["a", "b"]}),
    ("a list that is to be empty", {"args": ["a"]}, {"args": []}),
    ("CPU of another value", {"requests": {"cpu": "1"}}, {"requests": {"cpu": "1001m"}}),
    ("quantities where they are plain text", {"data": {"cpu": "1"}}, {"data": {"cpu": "1000m"}}),
    ("text that looks like a number", {"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "1.0"}]}),
    ("true for 1", {"a": 1}, {"a": True}),
    ("a map instead of text", {"a": "x"}, {"a": {"b": 1}}),
    ("a port of another protocol", {"ports": [{"port": 53}]}, {"ports": [{"port": 53, "protocol": "UDP"}]}),
]


@pytest.mark.parametrize(("observed", "wanted"), [row[1:] for row in SAME], ids=[row[0] for row in SAME])
def test_carries_what_is_wanted(observed: Any, wanted: Any) -> None:
    assert carries(observed, wanted)


@pytest.mark.parametrize(("observed", "wanted"), [row[1:] for row in DIFFERENT], ids=[row[0] for row in DIFFERENT])
def test_does_not_carry_what_is_wanted(observed: Any, wanted: Any) -> None:
    assert not carries(observed, wanted)


# The examples and suffixes of k8s.io/apimachinery/pkg/api/resource, Quantity.
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("12.3", "12.3"),
        ("100m", "0.1"),
        ("5u", "0.000005"),
        ("7n", "0.000000007"),
        ("1k", "1000"),
        ("2M", "2000000"),
        ("1Ki", "1024"),
        ("1.5Gi", "1610612736"),
        ("1Ei", "1152921504606846976"),
        ("1E", "1000000000000000000"),
        ("12e6", "12000000"),
        ("-3", "-3"),
        (2, "2"),
    ],
)
def test_quantities(text: str | int, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "a", "1Q", "1 Gi", "Gi", "1..2", "0x10"])
def test_what_is_no_quantity_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity; write it like"):
        parse_quantity(text)
