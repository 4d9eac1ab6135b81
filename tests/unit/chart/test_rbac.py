"""The operator may do what its controllers need and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controllers import rbac
from controllers.inferenceservice import models
from controllers.runtime import objects
from controllers.runtime.admission import Reviewing
from controllers.runtime.namespace import NAMESPACE_TYPES
from controllers.runtime.objects import SECRET, ObjectType

ROOT = Path(__file__).parents[3]
FILES = ROOT / "charts" / "headrace" / "files"
CONTROLLERS = rbac.chart_controllers()
RULES = rbac.manifest(rbac.cluster_rules(CONTROLLERS))
Grant = tuple[str, str, str, str]
"""Group, resource, verb, and the one name that it is limited to or empty."""


def grants(rules: list[dict[str, Any]]) -> Iterator[Grant]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    for name in rule.get("resourceNames") or [""]:
                        yield group, resource, verb, name


def test_what_reviews_look_at_can_be_read() -> None:
    held = {(group, resource, verb) for group, resource, verb, name in grants(RULES) if not name}
    for controller in CONTROLLERS:
        for type_ in controller.reviews if isinstance(controller, Reviewing) else ():
            right = (type_.group, type_.plural, "get" if type_.namespaced else "list")
            assert (right in held) == (type_ != SECRET), type_


def test_the_webhook_s_rights_are_to_two_objects() -> None:
    rules = [*rbac.manifest(rbac.WEBHOOK_CLUSTER_RULES), *rbac.manifest(rbac.WEBHOOK_NAMESPACE_RULES)]
    assert {(resource, name) for _, resource, _, name in grants(rules)} == {
        ("validatingwebhookconfigurations", '{{ include "headrace.webhookName" . }}'),
        ("secrets", '{{ include "headrace.webhookName" . }}'),
    }


@pytest.mark.parametrize(
    "name", ["cluster-rules.yaml", "namespace-rules.yaml", "webhook-cluster-rules.yaml", "webhook-namespace-rules.yaml"]
)
def test_the_charts_rules_are_what_the_controllers_declare(name: str) -> None:
    assert (FILES / name).read_text() == rbac.files(CONTROLLERS)[name], "run: python -m controllers.rbac"


def test_no_rule_has_a_wildcard() -> None:
    every = [*RULES, *rbac.manifest(rbac.NAMESPACE_RULES)]
    assert not [rule for rule in every if "*" in str(rule)]


def test_no_right_is_given_twice() -> None:
    every = list(grants(RULES))
    assert len(every) == len(set(every))
    unlimited = {grant[:3] for grant in every if not grant[3]}
    assert not [grant for grant in every if grant[3] and grant[:3] in unlimited]


def test_secrets_are_written_under_two_names_and_never_read() -> None:
    secrets = {(verb, name) for _, resource, verb, name in grants(RULES) if resource == "secrets"}
    names = ("headrace-storage", "headrace-online-store")
    assert secrets == {(verb, name) for verb in ("create", "patch") for name in names}


def test_only_one_role_can_be_bound_and_only_under_one_name() -> None:
    rights = {grant[1:] for grant in grants(RULES) if grant[0] == "rbac.authorization.k8s.io"}
    writes = {right for right in rights if right[1] not in ("list", "watch")}
    assert writes == {
        ("clusterroles", "bind", "headrace-worker"),
        ("rolebindings", "create", "headrace-worker"),
        ("rolebindings", "patch", "headrace-worker"),
        ("rolebindings", "delete", "headrace-worker"),  # another release may have left one with another role
    }


def test_pods_are_annotated_and_never_replaced() -> None:
    assert {verb for _, resource, verb, _ in grants(RULES) if resource == "pods"} == {
        "get",
        "list",
        "watch",
        "create",
        "patch",
        "delete",
    }


def test_of_resources_only_the_status_is_written() -> None:
    rights = {(resource, verb) for group, resource, verb, _ in grants(RULES) if group == "headrace.dev"}
    assert rights == {
        (f"{kind}{suffix}", verb)
        for kind in ("trainingjobs", "inferenceservices", "featuresets")
        for suffix, verbs in (("", ("list", "watch")), ("/status", ("update",)), ("/finalizers", ("update",)))
        for verb in verbs
    } | {("trainingjobs", "delete")}  # ttlSecondsAfterFinished


TYPES: dict[str, ObjectType] = {
    name: value for module in (objects, models) for name, value in vars(module).items() if isinstance(value, ObjectType)
}


def used_types(folder: Path) -> set[ObjectType]:
    """Types that a kind's code names outside its declaration (`owns`, `reads`, `REVIEWS`) and its imports."""
    found: set[str] = set()
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        declared = {
            id(name)
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") in ("owns", "reads", "REVIEWS")
            for name in ast.walk(node)
        }
        found |= {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and node.id in TYPES and id(node) not in declared
        }
        if "namespace_objects(" in path.read_text():
            found |= {name for name, type_ in TYPES.items() if type_ in NAMESPACE_TYPES}
        if re.search(r"runtime\.workload import [^\n]*\bserver\b", path.read_text()):
            found |= {"DEPLOYMENT", "PDB", "NETWORK_POLICY"}
    return {TYPES[name] for name in found}


@pytest.mark.parametrize("controller", CONTROLLERS, ids=lambda controller: controller.resource.info.kind)
def test_a_kind_declares_exactly_the_types_that_its_code_uses(controller: Any) -> None:
    folder = ROOT / Path(*type(controller).__module__.split(".")[:-1])
    reviews = controller.reviews if isinstance(controller, Reviewing) else ()
    assert {*controller.owns, *controller.reads, *reviews} == used_types(folder)


def test_every_declared_type_can_be_watched_and_written() -> None:
    held: dict[tuple[str, str], set[str]] = {(group, resource): set() for group, resource, _, _ in grants(RULES)}
    for group, resource, verb, _ in grants(RULES):
        held[group, resource].add(verb)
    for controller in CONTROLLERS:
        for type_ in (*controller.owns, *controller.reads):
            verbs = held[type_.group, type_.plural]
            assert not type_.watched or {"list", "watch"} <= verbs, type_
        for type_ in controller.owns:
            assert "create" in held[type_.group, type_.plural], type_
