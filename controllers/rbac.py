"""The operator's RBAC rules, from what its controllers declare; `python -m controllers.rbac` writes the chart's files.

Every verb follows from how the runtime handles a type (`controllers.runtime.apply`, `.cache`): what is watched is
listed and watched; children are looked up, applied (which takes `create` and `patch`) and deleted; pods are created
and never patched; what a whole namespace shares is applied under its one name; a type that is not watched is never
read; what a review at admission looks at is got one by one, or listed where it is cluster-scoped. No rule has a
wildcard.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from controllers.runtime.admission import Reviewing
from controllers.runtime.controller import Controller, PolicyRule
from controllers.runtime.namespace import ONLINE_STORE_SECRET, STORAGE_SECRET, WORKER_ACCOUNT
from controllers.runtime.objects import POD, ROLE_BINDING, SECRET, SERVICE_ACCOUNT, ObjectType

LEASE = "headrace-operator"
"""Name of the Lease, as the operator's settings have it by default."""

SHARED_NAMES: Mapping[ObjectType, tuple[str, ...]] = {
    SERVICE_ACCOUNT: (WORKER_ACCOUNT,),
    ROLE_BINDING: (WORKER_ACCOUNT,),
    SECRET: (STORAGE_SECRET, ONLINE_STORE_SECRET),
}
"""Types of which the operator writes a few objects per namespace, by those objects' names: it may write no other.
(Server-side apply names the object in its request, so that `create` too can be limited by name.)"""

RUNTIME_RULES: Sequence[PolicyRule] = (PolicyRule(("events.k8s.io",), ("events",), ("create", "patch")),)
"""What the runtime itself does in every namespace, whatever the kinds: Events about resources."""

NAMESPACE_RULES: Sequence[PolicyRule] = (
    PolicyRule(("coordination.k8s.io",), ("leases",), ("create",)),
    PolicyRule(("coordination.k8s.io",), ("leases",), ("get", "update"), (LEASE,)),
)
"""What the operator does in its own namespace: leader election. (A plain create cannot be limited by name.)"""

_WEBHOOK = '{{ include "headrace.webhookName" . }}'
WEBHOOK_CLUSTER_RULES: Sequence[PolicyRule] = (
    PolicyRule(("admissionregistration.k8s.io",), ("validatingwebhookconfigurations",), ("get", "patch"), (_WEBHOOK,)),
)
"""What the operator does to have the API server trust its webhook: it keeps the authority in the configuration."""

WEBHOOK_NAMESPACE_RULES: Sequence[PolicyRule] = (
    PolicyRule(("",), ("secrets",), ("get", "create", "patch"), (_WEBHOOK,)),
)
"""And in its own namespace: the one Secret that it reads holds the webhook's certificate, which all replicas serve."""

_CHART_FILES = Path(__file__).parents[1] / "charts" / "headrace" / "files"
_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "bind")


def cluster_rules(controllers: Iterable[Controller[Any, Any]]) -> list[PolicyRule]:
    """The rules of the operator's ClusterRole.

    Args:
        controllers: Every controller that the operator runs.

    Returns:
        The rules, merged where only the resources differ, in a stable order.
    """
    grants: dict[tuple[str, str, tuple[str, ...]], set[str]] = {}

    def grant(group: str, resource: str, verbs: Iterable[str], names: tuple[str, ...] = ()) -> None:
        grants.setdefault((group, resource, names), set()).update(verbs)

    for controller in controllers:
        info = controller.resource.info
        grant(info.group, info.plural, ("list", "watch"))
        grant(info.group, f"{info.plural}/status", ("update",))
        # Children block their owner's deletion, which OwnerReferencesPermissionEnforcement ties to this verb.
        grant(info.group, f"{info.plural}/finalizers", ("update",))
        for type_ in controller.owns:
            for names, verbs in _owned(type_):
                grant(type_.group, type_.plural, verbs, names)
        for type_ in controller.reads:
            grant(type_.group, type_.plural, ("list", "watch"))
        for rule in controller.rules:
            _grant_rule(grant, rule)
        for type_ in controller.reviews if isinstance(controller, Reviewing) else ():
            if type_ != SECRET:  # the chart grants that only where its value webhook.checkSecrets asks for it
                grant(type_.group, type_.plural, ("get",) if type_.namespaced else ("list",))
    for rule in RUNTIME_RULES:
        _grant_rule(grant, rule)
    return _merged(grants)


def manifest(rules: Iterable[PolicyRule]) -> list[dict[str, Any]]:
    """Rules as a Role carries them."""
    result: list[dict[str, Any]] = []
    for rule in rules:
        item: dict[str, Any] = {"apiGroups": list(rule.api_groups), "resources": list(rule.resources)}
        if rule.resource_names:
            item["resourceNames"] = list(rule.resource_names)
        result.append(item | {"verbs": list(rule.verbs)})
    return result


def _owned(type_: ObjectType) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Pairs of resource names (none: any) and verbs."""
    watch = [((), ("list", "watch"))] if type_.watched else []
    if type_ in SHARED_NAMES:
        return [*watch, (SHARED_NAMES[type_], ("create", "patch"))]
    if type_ == POD:
        return [((), ("get", "list", "watch", "create", "delete"))]
    if not type_.watched:
        raise ValueError(f"{type_.kind} is not watched: name the objects that are written in SHARED_NAMES")
    return [*watch, ((), ("get", "create", "patch", "delete"))]


def _grant_rule(grant: Any, rule: PolicyRule) -> None:
    for group in rule.api_groups:
        for resource in rule.resources:
            grant(group, resource, rule.verbs, rule.resource_names)


def _merged(grants: Mapping[tuple[str, str, tuple[str, ...]], set[str]]) -> list[PolicyRule]:
    """One rule per group, names and verbs, with all resources that they hold for."""
    resources: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (group, resource, names), verbs in grants.items():
        ordered = tuple(verb for verb in _VERBS if verb in verbs)
        if len(ordered) != len(verbs):
            raise ValueError(f"{group}/{resource}: {', '.join(sorted(verbs.difference(_VERBS)))} is no verb known here")
        resources.setdefault((group, names, ordered), []).append(resource)
    return [
        PolicyRule((group,), tuple(sorted(names)), verbs, resource_names)
        for (group, resource_names, verbs), names in sorted(resources.items())
    ]


def files(controllers: Iterable[Controller[Any, Any]]) -> dict[str, str]:
    """The chart's rule files by name."""
    return {
        name: yaml.safe_dump(manifest(rules), sort_keys=False, width=120)
        for name, rules in (
            ("cluster-rules.yaml", cluster_rules(controllers)),
            ("namespace-rules.yaml", NAMESPACE_RULES),
            ("webhook-cluster-rules.yaml", WEBHOOK_CLUSTER_RULES),
            ("webhook-namespace-rules.yaml", WEBHOOK_NAMESPACE_RULES),
        )
    }


def chart_controllers() -> list[Controller[Any, Any]]:
    """Every controller, as the chart's rules are made from them."""
    # Imported here, so that the rules above depend on no kind.
    from controllers.featureset.controller import FeatureSetController
    from controllers.inferenceservice.controller import InferenceServiceController
    from controllers.runtime.settings import Settings
    from controllers.trainingjob.controller import TrainingJobController

    return [FeatureSetController(Settings()), InferenceServiceController(Settings()), TrainingJobController(Settings())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the rule files."""
    parser = argparse.ArgumentParser(prog="python -m controllers.rbac", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=_CHART_FILES, metavar="DIR", help="by default the chart's files/")
    out: Path = parser.parse_args(arguments).out
    for name, text in files(chart_controllers()).items():
        (out / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
