"""A pod reports on itself in one annotation of its own pod; its account can do nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import service_account_kubeconfig
from tests.api.helm import Helm
from tests.api.rest import MERGE, Rest
from tests.api.runtime.conftest import wait_until

NAMESPACE = "team"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ROLES = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings"
REPORT = {"headrace.dev/report": '{"epoch": 1}'}


def pod(name: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {"app": "x"},
            "annotations": {"kept": "yes"},
            "finalizers": ["a.example/b"],
        },
        "spec": {"serviceAccountName": "headrace-worker", "containers": [{"name": "main", "image": "x"}]},
    }


@pytest.fixture(scope="module")
def admin(control_plane: Path, helm: Helm) -> Rest:
    """The chart is installed, and a namespace has two worker pods and the account that the operator makes."""
    admin = Rest(control_plane)
    admin("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for name in ("headrace-worker", "other"):
        admin("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": name}})
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "headrace-worker"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
        }
        assert admin("POST", ROLES, binding).accepted
    for name in ("mine", "theirs"):
        assert admin("POST", PODS, pod(name)).accepted
    return admin


@pytest.fixture(scope="module")
def worker(control_plane: Path, admin: Rest, tmp_path_factory: pytest.TempPathFactory) -> Rest:
    """What runs in the pod `mine`, with the token that is mounted there."""
    target = tmp_path_factory.mktemp("worker") / "kubeconfig"
    worker = Rest(service_account_kubeconfig(control_plane, NAMESPACE, "headrace-worker", target, pod="mine"))
    attempt = {"metadata": {"annotations": {"forbidden": "x"}}}

    def refused() -> bool:
        return not worker("PATCH", f"{PODS}/mine", attempt, content_type=MERGE, dryRun="All").accepted

    wait_until(refused, "the API server has taken the policy in")
    return worker


def test_a_pod_reports_and_reports_again(admin: Rest, worker: Rest) -> None:
    for text in ('{"epoch": 1}', '{"epoch": 2}'):
        patch = {"metadata": {"annotations": {"headrace.dev/report": text}}}
        answer = worker("PATCH", f"{PODS}/mine", patch, content_type=MERGE)
        assert answer.accepted, answer.message
    annotations = admin("GET", f"{PODS}/mine").body["metadata"]["annotations"]
    assert annotations == {"kept": "yes", "headrace.dev/report": '{"epoch": 2}'}


def test_a_pod_takes_its_report_back(worker: Rest) -> None:
    patch = {"metadata": {"annotations": {"headrace.dev/report": None}}}
    assert worker("PATCH", f"{PODS}/mine", patch, content_type=MERGE).accepted


OWN = "may report on its own pod only"
ANNOTATION = "may change no annotation but headrace.dev/report"
NOTHING = "may change nothing of a pod but the annotation headrace.dev/report"


@pytest.mark.parametrize(
    ("name", "patch", "words"),
    [
        pytest.param("theirs", {"metadata": {"annotations": REPORT}}, OWN, id="another pod"),
        pytest.param("mine", {"metadata": {"annotations": {"other": "x"}}}, ANNOTATION, id="another annotation"),
        pytest.param("mine", {"metadata": {"annotations": {"kept": "no"}}}, ANNOTATION, id="change an annotation"),
        pytest.param("mine", {"metadata": {"annotations": {"kept": None}}}, ANNOTATION, id="remove an annotation"),
        pytest.param("mine", {"metadata": {"annotations": REPORT | {"kept": "no"}}}, ANNOTATION, id="report and more"),
        pytest.param("mine", {"metadata": {"labels": {"app": "y"}}}, NOTHING, id="label"),
        pytest.param("mine", {"metadata": {"labels": None}}, NOTHING, id="no labels"),
        pytest.param("mine", {"metadata": {"finalizers": None}}, NOTHING, id="finalizer"),
        pytest.param(
            "mine",
            {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "theirs", "uid": "u"}]}},
            NOTHING,
            id="owner",
        ),
        pytest.param("mine", {"spec": {"containers": [{"name": "main", "image": "evil"}]}}, NOTHING, id="image"),
        pytest.param("mine", {"spec": {"activeDeadlineSeconds": 1}}, NOTHING, id="deadline"),
        pytest.param(
            "mine",
            {"metadata": {"annotations": {"headrace.dev/report": "x" * 40_000}}},
            "may have 32768 bytes at most",
            id="a report that fills etcd",
        ),
    ],
)
def test_a_pod_may_change_nothing_else(worker: Rest, name: str, patch: Any, words: str) -> None:
    answer = worker("PATCH", f"{PODS}/{name}", patch, content_type=MERGE)
    assert not answer.accepted
    assert words in answer.message


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", f"{PODS}/mine"),
        ("GET", PODS),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/headrace-storage"),
        ("PATCH", "/api/v1/namespaces/default/pods/mine"),
        ("PATCH", f"{PODS}/mine/status"),
    ],
)
def test_a_pod_has_no_other_right(worker: Rest, method: str, path: str) -> None:
    answer = worker(method, path, {} if method == "PATCH" else None, content_type=MERGE)
    assert answer.status == 403


def test_a_token_that_names_no_pod_reports_nothing(control_plane: Path, admin: Rest, tmp_path: Path) -> None:
    free = Rest(service_account_kubeconfig(control_plane, NAMESPACE, "headrace-worker", tmp_path / "kubeconfig"))
    answer = free("PATCH", f"{PODS}/mine", {"metadata": {"annotations": REPORT}}, content_type=MERGE)
    assert not answer.accepted
    assert OWN in answer.message


def test_a_pod_of_the_same_name_that_came_later_is_another_pod(
    control_plane: Path, admin: Rest, tmp_path: Path
) -> None:
    admin("POST", PODS, pod("reborn") | {"metadata": {"name": "reborn"}})
    old = Rest(service_account_kubeconfig(control_plane, NAMESPACE, "headrace-worker", tmp_path / "k", pod="reborn"))
    patch = {"metadata": {"annotations": REPORT}}
    assert old("PATCH", f"{PODS}/reborn", patch, content_type=MERGE).accepted
    assert admin("DELETE", f"{PODS}/reborn", {"gracePeriodSeconds": 0}).accepted
    assert admin("POST", PODS, pod("reborn") | {"metadata": {"name": "reborn"}}).accepted
    assert not old("PATCH", f"{PODS}/reborn", patch, content_type=MERGE).accepted


def test_accounts_of_other_names_are_not_held_up(control_plane: Path, admin: Rest, tmp_path: Path) -> None:
    other = Rest(service_account_kubeconfig(control_plane, NAMESPACE, "other", tmp_path / "kubeconfig"))
    answer = other("PATCH", f"{PODS}/theirs", {"metadata": {"labels": {"app": "y"}}}, content_type=MERGE)
    assert answer.accepted, answer.message
