"""The admission webhook as the chart installs it."""

from __future__ import annotations

import pytest

from headrace.api import KINDS
from tests.unit.chart.test_templates import Manifest, environment, exists, find, pod_specs, render

CERT_MANAGER = ("webhook.certManager.enabled=true",)
NAME = "headrace-webhook"
RIGHTS = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


def webhook(*values: str) -> Manifest:
    (found,) = find("ValidatingWebhookConfiguration", NAME, *values)["webhooks"]
    return dict(found)


def test_an_operator_that_is_away_holds_up_nobody() -> None:
    found = webhook()
    assert (found["failurePolicy"], found["sideEffects"], found["matchPolicy"]) == ("Ignore", "None", "Equivalent")
    assert found["timeoutSeconds"] == 5
    assert webhook("webhook.timeoutSeconds=2")["timeoutSeconds"] == 2


def test_every_kind_is_reviewed_and_no_status() -> None:
    (rule,) = webhook()["rules"]
    # https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#matching-requests-rules
    # "*" matches all resources, but not subresources.
    assert rule["resources"] == ["*"]
    assert {f"{kind.info.group}/{kind.info.version}" for kind in KINDS} == {
        f"{rule['apiGroups'][0]}/{rule['apiVersions'][0]}"
    }


def test_the_api_server_reaches_the_operator() -> None:
    service = webhook()["clientConfig"]["service"]
    target = find("Service", service["name"])
    (port,) = target["spec"]["ports"]
    assert port["port"] == service["port"]
    (container,) = pod_specs()["headrace-operator"]["containers"]
    ports = {item["name"]: item["containerPort"] for item in container["ports"]}
    assert port["targetPort"] in ports
    policy = find("NetworkPolicy", "headrace-operator")["spec"]["ingress"]
    assert {"ports": [{"port": ports["webhook"], "protocol": "TCP"}]} in policy, "the API server has no fixed address"
    assert environment()["HEADRACE_WEBHOOK_NAMES"].split(",")[0] == f"{service['name']}.{service['namespace']}.svc"


def test_no_render_differs_from_the_one_before() -> None:
    """GitOps renders without a cluster to look into; a certificate made by the template would be another each time."""
    render.cache_clear()
    first = [item for item in render() if item["metadata"]["name"] == NAME]
    render.cache_clear()
    assert first == [item for item in render() if item["metadata"]["name"] == NAME]
    assert "data" not in find("Secret", NAME), "what helm sets, helm sets back"
    assert "caBundle" not in webhook()["clientConfig"]


def test_the_operator_keeps_the_certificate() -> None:
    assert environment()["HEADRACE_WEBHOOK_SECRET"] == NAME
    assert environment()["HEADRACE_WEBHOOK_CONFIGURATION"] == NAME
    (rule,) = find("Role", NAME)["rules"]
    assert (rule["resourceNames"], rule["verbs"]) == ([NAME], ["get", "create", "patch"])
    (rule,) = find("ClusterRole", NAME)["rules"]
    assert (rule["resourceNames"], rule["verbs"]) == ([NAME], ["get", "patch"])


def test_secrets_are_read_only_where_that_is_asked_for() -> None:
    rules = find("ClusterRole", NAME, "webhook.checkSecrets=true")["rules"]
    assert {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]} in rules
    assert environment("webhook.checkSecrets=true")["HEADRACE_WEBHOOK_CHECK_SECRETS"] == "true"
    assert "HEADRACE_WEBHOOK_CHECK_SECRETS" not in environment()


def test_cert_manager_takes_the_operator_s_place() -> None:
    assert "HEADRACE_WEBHOOK_CONFIGURATION" not in environment(*CERT_MANAGER)
    assert not exists("Secret", NAME, *CERT_MANAGER)
    assert not exists("ClusterRole", NAME, *CERT_MANAGER)
    (rule,) = find("Role", NAME, *CERT_MANAGER)["rules"]
    assert rule["verbs"] == ["get"]
    certificate = find("Certificate", NAME, *CERT_MANAGER)["spec"]
    assert certificate["secretName"] == environment(*CERT_MANAGER)["HEADRACE_WEBHOOK_SECRET"]
    assert ",".join(certificate["dnsNames"]) == environment(*CERT_MANAGER)["HEADRACE_WEBHOOK_NAMES"]
    assert exists("Issuer", certificate["issuerRef"]["name"], *CERT_MANAGER)
    annotations = find("ValidatingWebhookConfiguration", NAME, *CERT_MANAGER)["metadata"]["annotations"]
    assert annotations == {"cert-manager.io/inject-ca-from": f"headrace-system/{NAME}"}
    own = (*CERT_MANAGER, "webhook.certManager.issuerRef.name=ours", "webhook.certManager.issuerRef.kind=ClusterIssuer")
    assert find("Certificate", NAME, *own)["spec"]["issuerRef"] == {"name": "ours", "kind": "ClusterIssuer"}
    assert not [item for item in render(*own) if item["kind"] == "Issuer"]


@pytest.mark.parametrize("kind", ["ValidatingWebhookConfiguration", "Service", "Secret", *RIGHTS])
def test_it_can_be_left_out(kind: str) -> None:
    assert exists(kind, NAME)
    assert not exists(kind, NAME, "webhook.enabled=false")


def test_nothing_else_speaks_of_it_then() -> None:
    assert not [name for name in environment("webhook.enabled=false") if "WEBHOOK" in name]
    assert "9443" not in str(render("webhook.enabled=false"))
