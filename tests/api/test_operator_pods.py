"""What the operator may do to a pod that runs: one annotation, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import service_account_kubeconfig
from tests.api.helm import Helm
from tests.api.rest import MERGE, Rest
from tests.api.runtime.conftest import wait_until

NAMESPACE = "told"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@pytest.fixture(scope="module")
def operator(control_plane: Path, helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Rest:
    """The operator's account under the chart's rights, and a pod that runs."""
    admin = Rest(control_plane)
    admin("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    admin("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}})
    made: dict[str, Any] = {
        "metadata": {"name": "router", "labels": {"app": "x"}, "annotations": {"kept": "yes"}},
        "spec": {"containers": [{"name": "main", "image": "x"}]},
    }
    assert admin("POST", PODS, made).accepted
    target = tmp_path_factory.mktemp("operator") / "kubeconfig"
    operator = Rest(service_account_kubeconfig(control_plane, "headrace-system", "headrace-operator", target))
    forbidden = {"metadata": {"annotations": {"forbidden": "x"}}}

    def refused() -> bool:
        return not operator("PATCH", f"{PODS}/router", forbidden, content_type=MERGE, dryRun="All").accepted

    wait_until(refused, "the API server has taken the policy in")
    return operator


def test_a_router_is_told_where_requests_go_and_told_otherwise_and_nothing(operator: Rest) -> None:
    for word in ('{"revision": "1"}', '{"revision": "2"}', None):
        patch = {"metadata": {"annotations": {"headrace.dev/traffic": word}}}
        answer = operator("PATCH", f"{PODS}/router", patch, content_type=MERGE)
        assert answer.accepted, answer.message
        assert answer.body["metadata"]["annotations"].get("headrace.dev/traffic") == word


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"containers": [{"name": "main", "image": "other"}]}},
        {"metadata": {"labels": {"app": "y"}}},
        {"metadata": {"annotations": {"kept": None}}},
        {"metadata": {"finalizers": ["a.example/b"]}},
    ],
    ids=["image", "label", "annotation", "finalizer"],
)
def test_nothing_else_of_a_pod_is_changed(operator: Rest, patch: dict[str, Any]) -> None:
    answer = operator("PATCH", f"{PODS}/router", patch, content_type=MERGE)
    assert (answer.status, "headrace.dev/traffic" in answer.message) == (403, True), answer.message
