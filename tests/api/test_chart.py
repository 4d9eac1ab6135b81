"""The chart against a real API server: all objects are valid; install, upgrade, rollback and uninstall are clean."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.controlplane import control_plane as new_control_plane
from tests.api.helm import CHART, Helm, HelmError
from tests.api.rest import APPLY, Answer, Rest

Manifest = dict[str, Any]
SYSTEM = "/api/v1/namespaces/headrace-system"
PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
}
CLUSTER_SCOPED = (
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
)

MATRIX: dict[str, tuple[str, ...]] = {
    "no value": (),
    "external S3": (
        "storage.uri=s3://models/team",
        "storage.endpoint=https://s3.example",
        "storage.existingSecret=keys",
    ),
    "HDFS": ("storage.uri=hdfs://namenode:8020/models",),
    "own credentials": ("storage.existingSecret=keys",),
    "one replica, one zone": ("operator.replicas=1", "operator.zoneSpreadPolicy=DoNotSchedule"),
    "no network policy, no CRDs": ("networkPolicy.enabled=false", "crds.enabled=false"),
    "no webhook": ("webhook.enabled=false",),
    "private registry": (
        "image.registry=registry.example:5000",
        "image.tag=1.2.3",
        "image.pullSecrets[0].name=pull",
        "image.pullPolicy=Always",
    ),
    "everything set": (
        "fullnameOverride=mill",
        "operator.podAnnotations.a=b",
        "operator.podLabels.c=d",
        "operator.nodeSelector.disk=ssd",
        "operator.tolerations[0].key=infra",
        "operator.tolerations[0].operator=Exists",
        "operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
        ".matchExpressions[0].key=infra",
        "operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
        ".matchExpressions[0].operator=Exists",
        "operator.priorityClassName=high",
        "operator.extraEnv[0].name=HTTPS_PROXY",
        "operator.extraEnv[0].value=http://proxy.example",
        "webhook.timeoutSeconds=2",
        "webhook.checkSecrets=true",
        "s3.persistence.storageClassName=fast",
        "s3.persistence.size=1Ti",
        "s3.bucket=models",
        "s3.nodeSelector.disk=hdd",
        "s3.allowFrom[0].namespaceSelector.matchLabels.team=data",
        "networkPolicy.apiServerPorts={443,16443}",
    ),
}


@pytest.fixture(scope="module")
def rest(control_plane: Path) -> Rest:
    rest = Rest(control_plane)
    rest("POST", "/api/v1/namespaces", {"metadata": {"name": "headrace-system"}})
    return rest


def dry_run(rest: Rest, manifest: Manifest) -> Answer:
    kind, version = manifest["kind"], manifest["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    scope = "" if kind in CLUSTER_SCOPED else "/namespaces/headrace-system"
    path = f"{root}{scope}/{PLURALS.get(kind, kind.lower() + 's')}/{manifest['metadata']['name']}"
    apply = "application/apply-patch+yaml"
    return rest(
        "PATCH",
        path,
        manifest,
        content_type=apply,
        fieldManager="test",
        force="true",
        dryRun="All",
        fieldValidation="Strict",
    )


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_every_object_is_what_a_strict_server_takes(rest: Rest, control_plane: Path, values: tuple[str, ...]) -> None:
    sets = [item for value in values for item in ("--set", value)]
    text = Helm(control_plane)("template", "headrace", str(CHART), "--kube-version", "1.36.0", *sets)
    manifests = [item for item in yaml.safe_load_all(text) if item]
    assert len(manifests) > 10
    for manifest in manifests:
        answer = dry_run(rest, manifest)
        assert answer.accepted, f"{manifest['kind']} {manifest['metadata']['name']}: {answer.message}"
        warnings = [text for text in answer.warnings if "field" in text or "deprecated" in text]
        assert not warnings, f"{manifest['kind']} {manifest['metadata']['name']}: {warnings}"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster that has never seen Headrace."""
    with new_control_plane(tmp_path_factory.mktemp("fresh")) as kubeconfig:
        yield kubeconfig


def credentials(rest: Rest) -> dict[str, str]:
    data = rest("GET", f"{SYSTEM}/secrets/headrace-s3").body["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


WEBHOOK = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/headrace-webhook"


def keep_certificate(rest: Rest, authority: str) -> None:
    """Write what the operator writes, as it does."""
    for path, kind, version, fields in (
        (f"{SYSTEM}/secrets/headrace-webhook", "Secret", "v1", {"data": {"ca.crt": authority}}),
        (
            WEBHOOK,
            "ValidatingWebhookConfiguration",
            "admissionregistration.k8s.io/v1",
            {"webhooks": [{"name": "review.headrace.dev", "clientConfig": {"caBundle": authority}}]},
        ),
    ):
        body = {"apiVersion": version, "kind": kind, "metadata": {"name": "headrace-webhook"}, **fields}
        answer = rest("PATCH", path, body, content_type=APPLY, fieldManager="headrace", force="true")
        assert answer.accepted, answer.message


def cluster_authority(kubeconfig: Path) -> str:
    """Some authority's certificate, in base64; the API server takes nothing else for one."""
    return str(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["certificate-authority-data"])


def certificate(rest: Rest) -> list[str]:
    """What Secret and configuration hold of it."""
    (webhook,) = rest("GET", WEBHOOK).body["webhooks"]
    data = rest("GET", f"{SYSTEM}/secrets/headrace-webhook").body["data"]
    return [data["ca.crt"], webhook["clientConfig"]["caBundle"]]


def operator_image(rest: Rest) -> str:
    body = rest("GET", "/apis/apps/v1/namespaces/headrace-system/deployments/headrace-operator").body
    return str(body["spec"]["template"]["spec"]["containers"][0]["image"])


def claim_size(rest: Rest) -> str:
    body = rest("GET", f"{SYSTEM}/persistentvolumeclaims/headrace-s3").body
    return str(body["spec"]["resources"]["requests"]["storage"])


def test_the_life_of_a_release(fresh: Path) -> None:
    helm, rest = Helm(fresh), Rest(fresh)
    helm.install()
    first = credentials(rest)
    authority = cluster_authority(fresh)
    keep_certificate(rest, authority)
    assert len(first["AWS_SECRET_ACCESS_KEY"]) == 40
    assert "helm test headrace" in helm.status()["info"]["notes"]

    helm.install("image.tag=0.2.0", "operator.replicas=3", "s3.resources.limits.memory=1Gi")
    assert operator_image(rest) == "headrace/operator:0.2.0"
    assert credentials(rest) == first, "new credentials would cut off every running job"
    assert certificate(rest) == [authority] * 2, "the webhook would fail until the operator looks again"

    helm("rollback", "headrace", "1")
    assert operator_image(rest) == "headrace/operator:0.1.0"
    assert credentials(rest) == first
    assert certificate(rest) == [authority] * 2

    helm("uninstall", "headrace")
    for kept in (
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.headrace.dev",
        f"{SYSTEM}/persistentvolumeclaims/headrace-s3",
    ):
        assert rest("GET", kept).accepted, kept
    for gone in (
        f"{SYSTEM}/secrets/headrace-s3",
        f"{SYSTEM}/serviceaccounts/headrace-operator",
        f"{SYSTEM}/secrets/headrace-webhook",
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/headrace-webhook",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/headrace-operator",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/headrace-worker-reports",
    ):
        assert rest("GET", gone).status == 404, gone

    helm.install()
    assert claim_size(rest) == "10Gi"
    assert helm.status()["info"]["status"] == "deployed"


def test_crds_go_with_the_release_where_they_are_not_to_be_kept(fresh: Path) -> None:
    helm, rest = Helm(fresh), Rest(fresh)
    helm.install("crds.keep=false")
    helm("uninstall", "headrace")
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.headrace.dev"
    answer = rest("GET", path)
    assert answer.status == 404 or "deletionTimestamp" in answer.body["metadata"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("operatr.replicas=2", "operatr"),
        ("operator.replica=2", "replica"),
        ("operator.replicas=0", "/operator/replicas"),
        ("operator.logLevel=verbose", "/operator/logLevel"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("storage.uri=gs://bucket", "/storage/uri"),
        ("storage.endpoint=https://s3.example", "name the folder in that service too"),
        ("s3.bucket=A", "/s3/bucket"),
        ("s3.persistence.size=lots", "/s3/persistence/size"),
        ("webhook.timeoutSeconds=60", "/webhook/timeoutSeconds"),
        ("webhook.certManager.issuer=x", "issuer"),
        ("networkPolicy.apiServerPorts={}", "/networkPolicy/apiServerPorts"),
        ("monitoring.serviceMonitor.enable=true", "enable"),
    ],
)
def test_a_wrong_value_is_refused_by_name(control_plane: Path, value: str, words: str) -> None:
    with pytest.raises(HelmError) as refused:
        Helm(control_plane)("template", "headrace", str(CHART), "--kube-version", "1.36.0", "--set", value)
    assert words in str(refused.value)
