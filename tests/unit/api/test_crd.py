"""The CRDs are what the models say, in the form that the API server takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import yaml
from pydantic import Field

from headrace.api import KINDS, Resource
from headrace.api.crd import crd, openapi
from headrace.api.meta import Status
from headrace.api.schema import Column, KindInfo, Model, Opaque, Quantity, Rule, Scale, list_map, rules
from headrace.cli import main
from headrace.cli.crds import manifests, reference

ROOT = Path(__file__).parents[3]
FOLDERS = (ROOT / "crds", ROOT / "charts" / "headrace" / "files" / "crds")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_the_committed_crds_are_what_the_models_say(folder: Path) -> None:
    committed = {path.name: path.read_text() for path in folder.iterdir()}
    assert committed == manifests(), f"run: headrace crds --out {folder.relative_to(ROOT)}"


def test_the_page_of_all_fields_is_what_the_models_say() -> None:
    assert (ROOT / "docs" / "crds.md").read_text() == reference(), "run: headrace crds --docs docs/crds.md"


def test_the_command_prints_and_writes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crds"]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert main(["crds", "--out", str(tmp_path / "new")]) == 0
    written = [yaml.safe_load(path.read_text()) for path in sorted((tmp_path / "new").iterdir())]
    assert printed == written
    assert [item["metadata"]["name"] for item in printed] == [f"{kind.info.plural}.headrace.dev" for kind in KINDS]


class Part(Model):
    """A part."""

    name: Annotated[str, Field(max_length=10)]
    """Its name."""
    size: Annotated[float, Field(gt=0)] = 1.0
    """Its size in metres."""


@rules(Rule("self.low <= self.high", "high must be at least low", ".high", lambda box: box.low <= box.high))
class Box(Model):
    """A box."""

    low: int = 1
    """Least."""
    high: Annotated[int, Field(le=10)] = 2
    """Most."""
    label: str | None = None
    """Text, for a person."""


class GadgetSpec(Model):
    """What a gadget is."""

    parts: Annotated[list[Part], Field(max_length=3, json_schema_extra=list_map("name"))] = Field(default_factory=list)
    """Its parts."""
    box: Box = Field(default_factory=Box)
    """Where it is kept."""
    spare: Part | None = None
    """The part that is kept aside."""
    memory: Quantity | None = None
    """Its memory."""
    template: Opaque | None = None
    """A pod."""
    required_field: int
    """How many."""


class GadgetStatus(Status):
    """How it is."""

    count: int = 0
    """How many there are."""


class Gadget(Resource):
    """A thing."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="Gadget",
        plural="gadgets",
        singular="gadget",
        short_names=("gd",),
        columns=(Column("Count", ".status.count", "integer", priority=1, description="How many"),),
        scale=Scale(".spec.requiredField", ".status.count", ".status.selector"),
    )
    spec: GadgetSpec
    status: GadgetStatus | None = None


SPEC = openapi(Gadget)["properties"]["spec"]


def test_names_scope_columns_and_subresources() -> None:
    made = crd(Gadget)
    assert made["spec"]["names"] == {
        "kind": "Gadget",
        "listKind": "GadgetList",
        "plural": "gadgets",
        "singular": "gadget",
        "shortNames": ["gd"],
        "categories": ["headrace"],
    }
    (version,) = made["spec"]["versions"]
    assert version["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.requiredField",
            "statusReplicasPath": ".status.count",
            "labelSelectorPath": ".status.selector",
        },
    }
    assert version["additionalPrinterColumns"] == [
        {"name": "Count", "type": "integer", "jsonPath": ".status.count", "description": "How many", "priority": 1}
    ]


def test_spec_is_required_and_optional_fields_are_not_nullable() -> None:
    assert openapi(Gadget)["required"] == ["spec"]
    assert SPEC["required"] == ["requiredField"]
    assert "anyOf" not in SPEC["properties"]["spare"]
    assert SPEC["properties"]["spare"]["type"] == "object"
    assert "default" not in SPEC["properties"]["spare"]


def test_a_references_own_description_wins_over_the_models() -> None:
    assert SPEC["properties"]["spare"]["description"] == "The part that is kept aside."
    assert SPEC["properties"]["parts"]["items"]["description"] == "A part."


def test_defaults_of_objects_are_written_in_full_and_empty_ones_are_not() -> None:
    # The API server evaluates an object's rules on its default before it fills in the inside.
    assert SPEC["properties"]["box"]["default"] == {"low": 1, "high": 2}
    assert "default" not in SPEC["properties"]["parts"]


def test_status_has_no_defaults() -> None:
    # What the controller applied is what is stored, so it can tell that nothing differs.
    assert openapi(Gadget)["properties"]["status"]["properties"]["count"] == {
        "description": "How many there are.",
        "type": "integer",
        "format": "int64",
    }


def test_the_inside_of_a_status_is_owned_as_a_whole() -> None:
    conditions = openapi(Gadget)["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"], "others may add conditions of their own"
    assert conditions["items"]["x-kubernetes-map-type"] == "atomic"
    assert "x-kubernetes-map-type" not in openapi(Gadget)["properties"]["status"]


def test_a_rule_of_a_field_goes_to_the_field_beside_those_of_its_type() -> None:
    @rules(Rule("self == oldSelf", "box cannot change", of="box"))
    class Fixed(GadgetSpec):
        """A spec with a box that stays."""

    class FixedGadget(Gadget):
        """A gadget with that spec."""

        spec: Fixed

    box = openapi(FixedGadget)["properties"]["spec"]["properties"]["box"]
    assert [rule["rule"] for rule in box["x-kubernetes-validations"]] == ["self.low <= self.high", "self == oldSelf"]


def test_rules_go_to_their_object() -> None:
    assert SPEC["properties"]["box"]["x-kubernetes-validations"] == [
        {"rule": "self.low <= self.high", "message": "high must be at least low", "fieldPath": ".high"}
    ]


def test_exclusive_bounds_are_booleans() -> None:
    size = SPEC["properties"]["parts"]["items"]["properties"]["size"]
    assert (size["minimum"], size["exclusiveMinimum"], size["format"]) == (0, True, "double")


def test_integers_are_32_bits_only_where_they_fit() -> None:
    assert SPEC["properties"]["box"]["properties"]["high"]["format"] == "int32"
    assert SPEC["properties"]["requiredField"]["format"] == "int64"


def test_list_maps_quantities_and_kubernetes_types() -> None:
    parts = SPEC["properties"]["parts"]
    assert (parts["x-kubernetes-list-type"], parts["x-kubernetes-list-map-keys"]) == ("map", ["name"])
    assert SPEC["properties"]["memory"]["x-kubernetes-int-or-string"] is True
    assert SPEC["properties"]["template"] == {
        "description": "A pod.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }


def test_a_model_that_contains_itself_is_refused() -> None:
    class Tree(Model):
        """A tree."""

        children: list[Tree] = Field(default_factory=list)
        """Below."""

    Tree.model_rebuild(_types_namespace={"Tree": Tree})

    class Forest(Gadget):
        """Trees."""

        spec: Tree  # type: ignore[assignment]

    with pytest.raises(ValueError, match="Tree contains itself"):
        crd(Forest)


def test_a_union_is_refused() -> None:
    class Either(Model):
        """This or that."""

        value: int | str = 0
        """It."""

    class Choice(Gadget):
        """One."""

        spec: Either  # type: ignore[assignment]

    with pytest.raises(ValueError, match="a union has no structural form"):
        crd(Choice)


def _nodes(path: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from _nodes(f"{path}.{name}", child)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from _nodes(f"{path}[]", node[key])


EVERY_NODE = [
    pytest.param(path, node, id=f"{kind.info.kind}{path}") for kind in KINDS for path, node in _nodes("", openapi(kind))
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.info.kind)
def test_every_field_has_a_description_that_is_a_sentence(kind: type[Resource]) -> None:
    lacking = [
        path
        for path, node in _nodes("", openapi(kind))
        if path and path != ".metadata" and not path.endswith("[]") and not node.get("description", "").endswith(".")
    ]
    assert not lacking


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.info.kind)
def test_every_list_says_how_it_merges_and_how_long_it_may_be(kind: type[Resource]) -> None:
    lists = [
        (path, node) for path, node in _nodes("", openapi(kind)["properties"]["spec"]) if node.get("type") == "array"
    ]
    assert lists
    for path, node in lists:
        assert node.get("x-kubernetes-list-type") in ("map", "atomic"), path
        assert "maxItems" in node, path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.info.kind)
def test_the_short_name_and_the_columns_answer_is_it_well(kind: type[Resource]) -> None:
    assert kind.info.short_names
    names = [column.name for column in kind.info.columns]
    assert {"Ready", "Reason", "Age"} <= set(names)
    assert names[-1] == "Age"
