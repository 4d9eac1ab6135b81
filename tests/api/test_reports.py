"""A pod's report at a real API server, with the rights and under the policy that the chart gives its account."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from cluster.controlplane import service_account_kubeconfig
from headrace.reporting import ANNOTATION, PodAnnotation, Reporter, ReportRefused
from tests.api.helm import Helm
from tests.api.rest import MERGE, Rest

NAMESPACE = "reports"
WORKER = "headrace-worker"


def pod(name: str) -> dict[str, Any]:
    spec = {"serviceAccountName": WORKER, "containers": [{"name": "main", "image": "none"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def rest(control_plane: Path, helm: Helm) -> Rest:
    """The administrator, after a namespace with two pods and the workers' account has been made."""
    rest = Rest(control_plane)
    base = f"/api/v1/namespaces/{NAMESPACE}"
    assert rest("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}}).accepted
    assert rest("POST", f"{base}/serviceaccounts", {"metadata": {"name": WORKER}}).accepted
    binding = {
        "metadata": {"name": WORKER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": WORKER},
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
