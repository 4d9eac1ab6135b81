"""What the chart renders, without a cluster. tests/api asks a real API server about the same objects."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.tools import tool
from controllers.runtime.manager import ManagerOptions
from controllers.runtime.namespace import WORKER_CLUSTER_ROLE
from controllers.trainingjob.builders import metrics_ports
from headrace.api import KINDS
from headrace.api.chain import HTTP_PORT
from tests.unit.trainingjob.worlds import job

Manifest = dict[str, Any]
ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "headrace"
MONITORING = ("monitoring.serviceMonitor.enabled=true", "monitoring.prometheusRule.enabled=true")
EXTERNAL = ("storage.uri=s3://models/team", "storage.endpoint=https://s3.example", "storage.existingSecret=keys")


@functools.cache
def render(*values: str) -> tuple[Manifest, ...]:
    sets = [item for value in values for item in ("--set", value)]
    done = subprocess.run(
        [
            str(tool("helm")),
            "template",
            "headrace",
            str(CHART),
            "-n",
            "headrace-system",
            "--kube-version",
            "1.36.0",
            *sets,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(item for item in yaml.safe_load_all(done.stdout) if item)


def find(kind: str, name: str, *values: str) -> Manifest:
    (found,) = (item for item in render(*values) if (item["kind"], item["metadata"]["name"]) == (kind, name))
    return found


def exists(kind: str, name: str, *values: str) -> bool:
    return any((item["kind"], item["metadata"]["name"]) == (kind, name) for item in render(*values))


def pod_specs(*values: str) -> dict[str, Manifest]:
    found = {}
    for item in render(*values):
        if item["kind"] == "Pod":
            found[item["metadata"]["name"]] = item["spec"]
        elif "template" in item.get("spec", {}):
            found[item["metadata"]["name"]] = item["spec"]["template"]["spec"]
    return found


def test_everything_is_in_the_release_s_namespace_and_labelled() -> None:
    for item in render(*MONITORING):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "headrace", item
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        if "namespace" in item["metadata"]:
            assert item["metadata"]["namespace"] == "headrace-system"


@pytest.mark.parametrize("name", ["headrace-operator", "headrace-s3", "headrace-test"])
def test_pods_meet_the_restricted_pod_security_standard(name: str) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    spec = pod_specs()[name]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all(set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim"} for volume in spec["volumes"])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec["containers"], *spec.get("initContainers", [])):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not any("hostPort" in port for port in container.get("ports", []))
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_the_operator_survives_a_zone() -> None:
    deployment = find("Deployment", "headrace-operator")
    assert deployment["spec"]["replicas"] == 2
    spec = deployment["spec"]["template"]["spec"]
    (spread,) = spec["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    # A hard constraint leaves replicas pending on nodes without zone labels.
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    weights = {
        term["podAffinityTerm"]["topologyKey"]: term["weight"]
        for term in spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    }
    assert weights == {"topology.kubernetes.io/zone": 100, "kubernetes.io/hostname": 50}
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert find("PodDisruptionBudget", "headrace-operator")["spec"]["maxUnavailable"] == 1


def test_the_operator_has_time_to_end_in_good_order() -> None:
    spec = find("Deployment", "headrace-operator")["spec"]["template"]["spec"]
    # Besides the reconciles under way: the feed 5 s, Events 2 s, the tasks' end 5 s, giving the Lease back 5 s.
    assert spec["terminationGracePeriodSeconds"] > 5 + ManagerOptions().drain + 2 + 5 + 5


def test_selectors_never_change_with_values_or_versions() -> None:
    # They are immutable: a release whose upgrade changes one cannot be upgraded.
    for values in ((), ("image.tag=v9", "operator.podLabels.team=x"), EXTERNAL):
        assert find("Deployment", "headrace-operator", *values)["spec"]["selector"]["matchLabels"] == {
            "app.kubernetes.io/name": "headrace",
            "app.kubernetes.io/instance": "headrace",
            "app.kubernetes.io/component": "operator",
        }


def test_people_s_affinity_stands_beside_the_spread() -> None:
    affinity = find(
        "Deployment",
        "headrace-operator",
        "operator.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey=rack",
        "operator.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight=1",
    )["spec"]["template"]["spec"]["affinity"]
    assert affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == [{"topologyKey": "rack"}]
    assert len(affinity["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]) == 2
    assert affinity["podAffinity"]


def environment(*values: str) -> dict[str, Any]:
    (container,) = pod_specs(*values)["headrace-operator"]["containers"]
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def test_the_operator_knows_every_variable_that_the_chart_sets() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "operator"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "1000"},
    )
    known = set(re.findall(r"HEADRACE_[A-Z_]+", done.stdout)) | {
        "HEADRACE_STORAGE_SECRET_ACCESS_KEY",
        "HEADRACE_ONLINE_STORE_URI",
    }
    assert {name for name in environment() if name.startswith("HEADRACE_")} <= known


def test_the_embedded_store_is_what_resources_use_by_default() -> None:
    env = environment()
    assert env["HEADRACE_STORAGE_URI"] == "s3://headrace"
    assert env["HEADRACE_STORAGE_ENDPOINT"] == "http://headrace-s3.headrace-system.svc.cluster.local:7070"
    assert env["HEADRACE_STORAGE_ACCESS_KEY_ID"] == {
        "secretKeyRef": {"name": "headrace-s3", "key": "AWS_ACCESS_KEY_ID"}
    }
    (container,) = pod_specs()["headrace-s3"]["containers"]
    mounts = {mount["mountPath"]: mount.get("subPath") for mount in container["volumeMounts"]}
    assert mounts["/data/buckets/headrace"] == "buckets/headrace"


def test_external_storage_takes_the_embedded_store_s_place() -> None:
    env = environment(*EXTERNAL)
    assert env["HEADRACE_STORAGE_URI"] == "s3://models/team"
    assert env["HEADRACE_STORAGE_ENDPOINT"] == "https://s3.example"
    assert env["HEADRACE_STORAGE_SECRET_ACCESS_KEY"]["secretKeyRef"]["name"] == "keys"
    assert not [item for item in render(*EXTERNAL) if item["metadata"]["name"] == "headrace-s3"]


def test_storage_without_credentials_names_no_secret() -> None:
    env = environment("storage.uri=hdfs://namenode:8020/models")
    assert "HEADRACE_STORAGE_ACCESS_KEY_ID" not in env
    assert "HEADRACE_STORAGE_ENDPOINT" not in env


def test_images_come_from_one_registry_with_one_tag() -> None:
    values = (
        "image.registry=registry.example",
        "image.repository=ml/headrace",
        "image.tag=v2",
        "image.pullPolicy=Always",
    )
    env = environment(*values)
    assert env["HEADRACE_TRAINER_IMAGE"] == "registry.example/ml/headrace/trainer:v2"
    assert env["HEADRACE_SERVING_IMAGE"] == "registry.example/ml/headrace/serving:v2"
    assert env["HEADRACE_SERVING_TORCH_IMAGE"] == "registry.example/ml/headrace/serving-torch:v2"
    assert env["HEADRACE_SERVING_PMML_IMAGE"] == "registry.example/ml/headrace/serving-pmml:v2"
    assert env["HEADRACE_IMAGE_PULL_POLICY"] == "Always"
    images = {spec["containers"][0]["image"] for spec in pod_specs(*values).values()}
    assert images == {f"registry.example/ml/headrace/{name}:v2" for name in ("operator", "s3", "serving", "valkey")}
    assert pod_specs()["headrace-operator"]["containers"][0]["image"] == "headrace/operator:0.1.0"


def test_the_store_is_open_to_the_platform_s_pods_only() -> None:
    policy = find("NetworkPolicy", "headrace-s3")["spec"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": 7070, "protocol": "TCP"}]
    assert [peer["podSelector"]["matchLabels"] for peer in rule["from"]] == [
        {"app.kubernetes.io/managed-by": "headrace"},
        {"headrace.dev/s3-client": "true"},
    ]
    assert policy["egress"] == []


def test_the_operator_reaches_the_api_server_and_names_and_nothing_else() -> None:
    policy = find("NetworkPolicy", "headrace-operator")["spec"]
    (rule,) = policy["egress"]
    assert {(port["port"], port["protocol"]) for port in rule["ports"]} == {
        (53, "UDP"),
        (53, "TCP"),
        (443, "TCP"),
        (6443, "TCP"),
    }
    assert [port["port"] for port in policy["ingress"][0]["ports"]] == [8080]


def test_network_policies_can_be_left_out() -> None:
    assert not [item for item in render("networkPolicy.enabled=false") if item["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(("values", "policy"), [((), "keep"), (("crds.keep=false",), None)])
def test_crds_are_kept_unless_told_otherwise(values: tuple[str, ...], policy: str | None) -> None:
    for kind in KINDS:
        crd = find("CustomResourceDefinition", f"{kind.info.plural}.headrace.dev", *values)
        assert (crd["metadata"].get("annotations") or {}).get("helm.sh/resource-policy") == policy


def test_crds_can_be_left_out() -> None:
    assert not [item for item in render("crds.enabled=false") if item["kind"] == "CustomResourceDefinition"]


def test_the_role_of_the_workers_is_the_same_in_every_release() -> None:
    """Bindings in people's namespaces outlive a release, and their role cannot be changed."""
    for values, operator in (((), "headrace-operator"), (("fullnameOverride=mill",), "mill-operator")):
        (bind,) = (rule for rule in find("ClusterRole", operator, *values)["rules"] if "bind" in rule["verbs"])
        assert bind["resourceNames"] == [WORKER_CLUSTER_ROLE]
        assert exists("ClusterRole", WORKER_CLUSTER_ROLE, *values)


def test_nothing_is_monitored_unless_asked() -> None:
    assert not [item for item in render() if item["apiVersion"].startswith("monitoring.coreos.com")]


def test_monitors_select_ports_that_exist() -> None:
    (endpoint,) = find("ServiceMonitor", "headrace-operator", *MONITORING)["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in find("Service", "headrace-operator")["spec"]["ports"]]
    (pods,) = find("PodMonitor", "headrace-serving", *MONITORING)["spec"]["podMetricsEndpoints"]
    assert pods["port"] == "http"
    assert HTTP_PORT == 8080
    workers = find("PodMonitor", "headrace-training", *MONITORING)["spec"]["podMetricsEndpoints"]
    assert [item["port"] for item in workers] == [name for name, _ in metrics_ports(job(gpu={"count": 16}))]


def test_alerts_speak_of_metrics_that_the_code_has() -> None:
    rule = find("PrometheusRule", "headrace", *MONITORING)
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert len(alerts) >= 6
    sources = "".join(
        path.read_text() for folder in ("controllers", "headrace") for path in (ROOT / folder).rglob("*metrics*.py")
    )
    for alert in alerts:
        named = set(
            re.findall(
                r"\b(?:headrace|controller_runtime|workqueue|leader_election|rest_client)_[a-z_]+", alert["expr"]
            )
        )
        assert named, alert["alert"]
        for metric in named:
            assert f'"{metric}"' in sources, f"{alert['alert']}: no metric {metric}"
        assert {"summary", "description"} == alert["annotations"].keys()
        assert alert["labels"]["severity"] in ("warning", "critical")


def test_every_value_is_in_the_schema_and_documented() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    page = (ROOT / "docs" / "values.md").read_text()

    def walk(node: Manifest, value: Manifest, path: str) -> None:
        assert node["additionalProperties"] is False, path
        assert set(node["properties"]) - {"global"} == set(value), path
        for name, child in value.items():
            below = node["properties"][name]
            here = f"{path}.{name}".lstrip(".")
            if isinstance(child, dict) and below.get("additionalProperties") is False and child and name != "resources":
                walk(below, child, here)
            else:
                assert f"`{here}`" in page, f"docs/values.md does not name {here}"

    walk(schema, values, "")
