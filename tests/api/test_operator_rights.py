"""The operator under the rights that the chart gives it: nothing is refused, and nothing that it holds is idle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ControlPlane, free_ports, service_account_kubeconfig
from controllers import rbac
from tests.api.bad_feature_sets import GOOD_FEATURE_SET
from tests.api.bad_specs import GOOD_JOB, GOOD_SERVICE, merge_patch
from tests.api.helm import Helm
from tests.api.rest import MERGE, Rest, path_of

ROOT = Path(__file__).parents[2]
OPERATOR = "system:serviceaccount:headrace-system:headrace-operator"
WEBHOOK = "headrace-webhook"
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
JOBS = path_of(GOOD_JOB, collection=True)
Right = tuple[str, str, str]
"""Group, resource and verb."""

RARE: dict[str, Callable[[str, str, str], bool]] = {
    "asked only where OwnerReferencesPermissionEnforcement is on": lambda _, resource, __: resource.endswith(
        "finalizers"
    ),
    "children go with their owner; deleted is what a later revision no longer wants": lambda _, __, verb: (
        verb == "delete"
    ),
    "the same Event came again within minutes": lambda _, resource, verb: (resource, verb) == ("events", "patch"),
    "the name of a child was taken": lambda _, resource, verb: (
        resource in ("pods", "podgroups", "jobs") and verb == "get"
    ),
    "which gang scheduling a cluster serves depends on its release; priorities are read where it serves none": (
        lambda group, resource, _: group == "scheduling.k8s.io" and resource in ("priorityclasses", "workloads")
    ),
    "running routers are told where a canary's and a shadow's requests go": lambda _, resource, verb: (
        (resource, verb) == ("pods", "patch")
    ),
    "asked when a role is bound, not by a request of its own": lambda _, __, verb: verb == "bind",
}
"""Rights that a short run does not use, by the reason why they are held all the same."""


def binding(role: str, namespace: str = "default") -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "headrace-worker", "labels": {"app.kubernetes.io/managed-by": "headrace"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "headrace-worker", "namespace": namespace}],
    }


@dataclass(frozen=True, slots=True)
class Installation:
    """A control plane with the chart, and an operator process with the operator's own token."""

    plane: ControlPlane
    admin: Rest
    log: Path


def address(plane: ControlPlane, url: str) -> None:
    """Have the API server reach the webhook, which no Service leads to here."""
    path = f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{WEBHOOK}"
    admin = Rest(plane.kubeconfig)
    found = admin("GET", path).body
    (webhook,) = found["webhooks"]
    assert admin("PUT", path, found | {"webhooks": [webhook | {"clientConfig": {"url": url}}]}).accepted


@contextmanager
def operator(plane: ControlPlane, folder: Path) -> Iterator[Path]:
    health, metrics, webhook = free_ports(3)
    kubeconfig = service_account_kubeconfig(
        plane.kubeconfig, "headrace-system", "headrace-operator", folder / "operator.kubeconfig"
    )
    log = folder / "operator.log"
    address(plane, f"https://127.0.0.1:{webhook}/")
    command = [sys.executable, str(ROOT / "operator"), "--kubeconfig", str(kubeconfig), "--host", "127.0.0.1"]
    command += ["--namespace", "headrace-system", "--health-port", str(health), "--metrics-port", str(metrics)]
    command += ["--webhook-secret", WEBHOOK, "--webhook-configuration", WEBHOOK]
    command += ["--webhook-names", "127.0.0.1", "--webhook-port", str(webhook)]
    environment = {"PYTHONPATH": str(ROOT), "HEADRACE_ONLINE_STORE_URI": "redis://store:6379/0"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            yield log
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("rights")
    plane = ControlPlane(folder / "plane", audit=True)
    try:
        plane.start()
        Helm(plane.kubeconfig).install()
        with operator(plane, folder) as log:
            yield Installation(plane, Rest(plane.kubeconfig), log)
    finally:
        plane.stop()


def eventually(what: str, look: Callable[[], Any], log: Path, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s\n{log.read_text()[-3000:]}"
        time.sleep(0.1)
    return found


def requests(plane: ControlPlane) -> Iterator[dict[str, Any]]:
    assert plane.audit_log is not None
    for line in plane.audit_log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] == OPERATOR and "objectRef" in event:
            yield event


def used(plane: ControlPlane) -> set[Right]:
    """Server-side apply of what does not exist yet (201) takes the right to create it too."""
    rights: set[Right] = set()
    for event in requests(plane):
        group, resource, verb = right(event)
        rights.add((group, resource, verb))
        if verb == "patch" and event.get("responseStatus", {}).get("code") == 201:
            rights.add((group, resource, "create"))
    return rights


def right(event: dict[str, Any]) -> Right:
    reference = event["objectRef"]
    resource = reference["resource"] + (f"/{reference['subresource']}" if "subresource" in reference else "")
    return reference.get("apiGroup", ""), resource, event["verb"]


def granted() -> set[Right]:
    rules = [
        *rbac.cluster_rules(rbac.chart_controllers()),
        *rbac.NAMESPACE_RULES,
        *rbac.WEBHOOK_CLUSTER_RULES,
        *rbac.WEBHOOK_NAMESPACE_RULES,
    ]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule.api_groups
        for resource in rule.resources
        for verb in rule.verbs
    }


@pytest.fixture(scope="module")
def worked(installation: Installation) -> Installation:
    """The operator made the children of a job, a service and a feature set, and followed changes."""
    admin, log = installation.admin, installation.log
    # Another release, of another name, was here before.
    assert admin("POST", f"{RBAC}/rolebindings", binding("mill-headrace-worker")).accepted
    script = {"configMap": {"name": "code", "key": "train.py"}}
    reviewed = {"metadata": {"name": "reviewed"}, "spec": {"classifier": None, "script": script, "gpu": {"count": 1}}}
    eventually(
        "a warning at apply", lambda: admin("POST", JOBS, merge_patch(GOOD_JOB, reviewed), dryRun="All").warnings, log
    )
    service = merge_patch(GOOD_SERVICE, {"spec": {"predictor": {"minReplicas": 1, "maxReplicas": 2}}})
    for manifest in (GOOD_JOB, service, GOOD_FEATURE_SET):
        answer = admin("POST", path_of(manifest, collection=True), manifest)
        assert answer.accepted, answer.message
    scalers = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers"
    eventually("an autoscaler", lambda: admin("GET", scalers).body["items"], log)
    pods = "/api/v1/namespaces/default/pods"
    eventually("three workers", lambda: len(admin("GET", pods).body["items"]) == 3, log)
    admin("PATCH", path_of(service), {"spec": {"predictor": {"maxReplicas": 1}}}, content_type=MERGE)
    eventually("no autoscaler", lambda: not admin("GET", scalers).body["items"], log)
    feature_set = path_of(GOOD_FEATURE_SET)
    eventually("its refresh's status", lambda: "refresh" in admin("GET", feature_set).body.get("status", {}), log)
    eventually("the job's status", lambda: "attempt" in admin("GET", path_of(GOOD_JOB)).body["status"], log)
    eventually("the service's status", lambda: "url" in admin("GET", path_of(GOOD_SERVICE)).body["status"], log)
    eventually(
        "the Lease's renewal", lambda: ("coordination.k8s.io", "leases", "update") in used(installation.plane), log
    )
    events = "/apis/events.k8s.io/v1/namespaces/default/events"
    eventually("an Event", lambda: admin("GET", events).body["items"], log)
    return installation


def test_the_operator_is_refused_nothing(worked: Installation) -> None:
    refused = {
        (*right(event), event["responseStatus"].get("message", ""))
        for event in requests(worked.plane)
        if event.get("responseStatus", {}).get("code") == 403
    }
    assert not refused


def test_the_operator_holds_no_idle_right(worked: Installation) -> None:
    idle = granted() - used(worked.plane)
    assert not {item for item in idle if not any(rare(*item) for rare in RARE.values())}


def test_the_operator_reads_no_secret_but_its_webhook_s(worked: Installation) -> None:
    secrets = {
        (event["verb"], event["objectRef"]["namespace"], event["objectRef"]["name"])
        for event in requests(worked.plane)
        if event["objectRef"]["resource"] == "secrets"
    }
    assert secrets == {
        ("patch", "default", "headrace-storage"),
        ("patch", "default", "headrace-online-store"),
        ("get", "headrace-system", WEBHOOK),
        ("patch", "headrace-system", WEBHOOK),
    }
    secret = worked.admin("GET", "/api/v1/namespaces/default/secrets/headrace-storage").body
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} > secret.get("data", {}).keys() - {"AWS_REGION"}


def test_a_binding_that_another_release_left_is_made_again(worked: Installation) -> None:
    found = worked.admin("GET", f"{RBAC}/rolebindings/headrace-worker").body
    assert found["roleRef"]["name"] == "headrace-worker"


@pytest.mark.parametrize(
    "path", ["/api/v1/namespaces/default/serviceaccounts/headrace-worker", f"{RBAC}/rolebindings/headrace-worker"]
)
def test_what_a_namespace_shares_comes_back_when_it_is_deleted(worked: Installation, path: str) -> None:
    uid = worked.admin("GET", path).body["metadata"]["uid"]
    assert worked.admin("DELETE", path).accepted
    eventually("it is back", lambda: worked.admin("GET", path).body["metadata"].get("uid", uid) != uid, worked.log)


def test_the_storage_s_secret_comes_back_when_a_pod_waits_for_it(worked: Installation) -> None:
    secret = "/api/v1/namespaces/default/secrets/headrace-storage"
    assert worked.admin("DELETE", secret).accepted
    pod = "/api/v1/namespaces/default/pods/good-worker-0"
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "headrace-storage" not found'}
    status = {"name": "worker", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    status["state"] = {"waiting": waiting}  # as the kubelet says it
    body = {"status": {"phase": "Pending", "containerStatuses": [status]}}
    assert worked.admin("PATCH", f"{pod}/status", body, content_type=MERGE).accepted
    eventually("it is back", lambda: worked.admin("GET", secret).accepted, worked.log)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/namespaces/default/secrets"),
        ("PATCH", "/api/v1/namespaces/default/secrets/somebody-elses"),
        ("PATCH", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/admin"),
        ("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/headrace-operator"),
        ("PATCH", "/api/v1/namespaces/default/pods/good-worker-0"),
        ("PATCH", "/apis/headrace.dev/v1alpha1/namespaces/default/trainingjobs/good"),
        ("GET", "/api/v1/namespaces/headrace-system/secrets/headrace-s3"),
        ("PATCH", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/somebody-elses"),
        ("DELETE", "/api/v1/namespaces/default"),
        ("PATCH", "/api/v1/nodes/a"),
    ],
)
def test_what_the_operator_may_not_do(worked: Installation, tmp_path: Path, method: str, path: str) -> None:
    target = tmp_path / "kubeconfig"
    token = service_account_kubeconfig(worked.plane.kubeconfig, "headrace-system", "headrace-operator", target)
    changed: dict[str, Any] = {"metadata": {"labels": {"changed": "yes"}}}
    body = changed if method == "PATCH" else None
    assert Rest(token)(method, path, body, content_type=MERGE).status == 403


def test_the_operator_cannot_give_its_workers_another_role(worked: Installation, tmp_path: Path) -> None:
    target = tmp_path / "kubeconfig"
    token = service_account_kubeconfig(worked.plane.kubeconfig, "headrace-system", "headrace-operator", target)
    worked.admin("POST", "/api/v1/namespaces", {"metadata": {"name": "escalation"}})
    answer = Rest(token)(
        "PATCH",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/escalation/rolebindings/headrace-worker",
        binding("cluster-admin", "escalation"),
        content_type="application/apply-patch+yaml",
        fieldManager="headrace",
    )
    assert answer.status == 403
    assert "attempting to grant RBAC permissions not currently held" in answer.message
