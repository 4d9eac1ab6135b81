"""A pod's report at a real API server, with the rights and under the policy that the chart gives its account."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from cluster.controlplane import service_account_kubeconfig
from cluster.tools import KUBERNETES_VERSION, tool
from headrace.reporting import ANNOTATION, PodAnnotation, Reporter, ReportRefused
from tests.api.rest import MERGE, Rest

CHART = Path(__file__).parents[2] / "charts" / "headrace"
NAMESPACE = "reports"
WORKER = "headrace-worker"


def rendered(template: str) -> list[dict[str, Any]]:
    helm = [str(tool("helm")), "template", "headrace", str(CHART), "--kube-version", KUBERNETES_VERSION]
    output = subprocess.run(
        [*helm, "--show-only", f"templates/{template}"], check=True, capture_output=True, text=True
    ).stdout
    return [document for document in yaml.safe_load_all(output) if document]


def pod(name: str) -> dict[str, Any]:
    spec = {"serviceAccountName": WORKER, "containers": [{"name": "main", "image": "none"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def rest(control_plane: Path) -> Rest:
    """The administrator, after a namespace with two pods and the workers' account has been made."""
    rest = Rest(control_plane)
    documents = rendered("worker-reports.yaml")
    role = next(d["metadata"]["name"] for d in documents if d["kind"] == "ClusterRole")
    base = f"/api/v1/namespaces/{NAMESPACE}"
    assert rest("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}}).accepted
    assert rest("POST", f"{base}/serviceaccounts", {"metadata": {"name": WORKER}}).accepted
    for document in documents:
        group, plural = {
            "ClusterRole": ("rbac.authorization.k8s.io/v1", "clusterroles"),
            "ValidatingAdmissionPolicy": ("admissionregistration.k8s.io/v1", "validatingadmissionpolicies"),
            "ValidatingAdmissionPolicyBinding": (
                "admissionregistration.k8s.io/v1",
                "validatingadmissionpolicybindings",
            ),
        }[document["kind"]]
        answer = rest("POST", f"/apis/{group}/{plural}", document)
        assert answer.accepted or answer.status == 409, answer.message
    binding = {
        "metadata": {"name": WORKER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": WORKER, "namespace": NAMESPACE}],
    }
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings"
    assert rest("POST", path, binding).accepted
    for name in ("own", "other"):
        assert rest("POST", f"{base}/pods", pod(name)).accepted
    return rest


@pytest.fixture
def service_account(rest: Rest, control_plane: Path, tmp_path: Path) -> Path:
    """The folder that the kubelet would mount into the pod `own`."""
    target = service_account_kubeconfig(control_plane, NAMESPACE, WORKER, tmp_path / "kubeconfig", pod="own")
    config = yaml.safe_load(target.read_text())
    (tmp_path / "token").write_text(config["users"][0]["user"]["token"])
    authority = config["clusters"][0]["cluster"]["certificate-authority-data"]
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(authority))
    return tmp_path


def client(name: str, control_plane: Path, service_account: Path) -> PodAnnotation:
    server = urlsplit(yaml.safe_load(control_plane.read_text())["clusters"][0]["cluster"]["server"])
    return PodAnnotation(name, NAMESPACE, server.hostname or "", server.port or 443, service_account)


def annotation(rest: Rest, name: str) -> str | None:
    body = rest("GET", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}").body
    value = (body["metadata"].get("annotations") or {}).get(ANNOTATION)
    return None if value is None else str(value)


def test_a_pod_annotates_itself(rest: Rest, control_plane: Path, service_account: Path) -> None:
    reporter = Reporter(client("own", control_plane, service_account))
    reporter.report({"epoch": 3, "loss": "0.1234"})
    assert reporter.close()
    assert json.loads(annotation(rest, "own") or "") == {"epoch": 3, "loss": "0.1234"}


def test_a_pod_may_not_annotate_another(rest: Rest, control_plane: Path, service_account: Path) -> None:
    # A new policy is enforced once the API server's own cache has it: ask without effect until then.
    worker, path = Rest(service_account / "kubeconfig"), f"/api/v1/namespaces/{NAMESPACE}/pods/other"
    patch = {"metadata": {"annotations": {ANNOTATION: "{}"}}}
    deadline = time.monotonic() + 20
    while worker("PATCH", path, patch, content_type=MERGE, dryRun="All").accepted:
        assert time.monotonic() < deadline, "the policy is not enforced"
        time.sleep(0.1)
    with pytest.raises(ReportRefused, match="its own pod only") as caught:
        client("other", control_plane, service_account)('{"epoch":3}')
    assert caught.value.status in (403, 422)
    assert annotation(rest, "other") is None


def test_the_token_is_read_afresh(rest: Rest, control_plane: Path, service_account: Path) -> None:
    token = service_account / "token"
    good = token.read_text()
    sink = client("own", control_plane, service_account)
    token.write_text("expired")
    with pytest.raises(ReportRefused, match="HTTP 401") as caught:
        sink("{}")
    assert caught.value.status == 401
    token.write_text(good)
    sink('{"epoch":4}')
    assert annotation(rest, "own") == '{"epoch":4}'
