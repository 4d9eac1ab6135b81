"""What every Deployment of the platform has, whoever asked for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from controllers.runtime.objects import DEPLOYMENT, NETWORK_POLICY, PDB, Manifest
from controllers.runtime.workload import Probes, Workload, deployment, server, template_hash
from headrace.api.meta import PodOptions


def workload(options: Manifest | None = None, **changes: Any) -> Workload:
    given: dict[str, Any] = {
        "name": "digits",
        "namespace": "demo",
        "instance": "digits",
        "owner_kind": "InferenceService",
        "owner_uid": "uid-1",
        "component": "router",
        "image": "headrace/serving:1",
        "image_pull_policy": "IfNotPresent",
        "args": ("serve",),
        "options": PodOptions.model_validate(options or {}),
        "replicas": 2,
        "most_replicas": 2,
        "port": 8080,
        "probes": Probes("/startup", "/readiness", "/liveness"),
        "longest_request": timedelta(seconds=1),
        "ingress": ({"ports": [{"port": 8080, "protocol": "TCP"}]},),
    }
    return Workload(**given | changes)


def pod(of: Workload) -> Any:
    return deployment(of)["spec"]["template"]["spec"]


def container(of: Workload) -> Any:
    (only,) = pod(of)["containers"]
    return only


def test_it_passes_the_restricted_pod_security_standard() -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    context, own = pod(workload())["securityContext"], container(workload())["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] != 0
    assert context["seccompProfile"]["type"] == "RuntimeDefault"
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["readOnlyRootFilesystem"] is True
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    assert all(set(volume) - {"name"} <= allowed for volume in pod(workload())["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(workload()))


def test_each_revision_is_spread_over_zones_and_nodes_and_never_pending_for_it() -> None:
    constraints = pod(workload())["topologySpreadConstraints"]
    assert [item["topologyKey"] for item in constraints] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    for item in constraints:
        assert item["maxSkew"] == 1
        assert item["whenUnsatisfiable"] == "ScheduleAnyway", "also without zones, and when one is dark"
        assert item["nodeTaintsPolicy"] == "Honor", "a dead zone is not the emptiest"
        assert item["matchLabelKeys"] == ["pod-template-hash"], "old pods do not count for new ones"
        labels = deployment(workload())["spec"]["template"]["metadata"]["labels"]
        assert item["labelSelector"]["matchLabels"].items() <= labels.items()


def test_pods_leave_a_lost_node_after_30_seconds() -> None:
    own = {"key": "nvidia.com/gpu", "operator": "Exists"}
    tolerations = pod(workload({"tolerations": [own]}))["tolerations"]
    assert {item["key"]: item.get("tolerationSeconds") for item in tolerations} == {
        "node.kubernetes.io/not-ready": 30,
        "node.kubernetes.io/unreachable": 30,
        "nvidia.com/gpu": None,
    }


def test_a_pod_goes_only_after_its_successor_is_ready() -> None:
    strategy = deployment(workload())["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


@pytest.mark.parametrize("longest", [timedelta(milliseconds=1500), timedelta(seconds=90)])
def test_a_leaving_pod_has_time_to_drain_and_for_its_longest_request(longest: timedelta) -> None:
    leaving = workload(longest_request=longest)
    pause = container(leaving)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause >= 5, "CoreDNS answers with a TTL of 5 s"
    drain = 5
    assert pod(leaving)["terminationGracePeriodSeconds"] > pause + drain + longest.total_seconds()


def test_probes() -> None:
    given = container(workload())
    paths = {name: given[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/startup", "readinessProbe": "/readiness", "livenessProbe": "/liveness"}
    patience = {name: given[name]["periodSeconds"] * given[name]["failureThreshold"] for name in paths}
    assert patience["startupProbe"] == 600
    assert patience["readinessProbe"] <= 5
    assert patience["livenessProbe"] >= 60
    assert deployment(workload())["spec"]["progressDeadlineSeconds"] > patience["startupProbe"]


def test_guards_stand_before_the_first_pod() -> None:
    assert [item.type for item in server(workload())] == [NETWORK_POLICY, PDB, DEPLOYMENT]
    budget = server(workload())[1].manifest["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"] == deployment(workload())["spec"]["selector"]["matchLabels"]


def test_a_single_pod_has_no_budget_and_one_that_may_grow_has() -> None:
    assert PDB not in [item.type for item in server(workload(replicas=1, most_replicas=1))]
    assert PDB in [item.type for item in server(workload(replicas=1, most_replicas=3))]


@pytest.mark.parametrize(
    ("given", "requests"),
    [
        ({}, {"cpu": "100m", "memory": "256Mi"}),
        ({"requests": {"cpu": "2"}}, {"cpu": "2", "memory": "256Mi"}),
        ({"limits": {"memory": "128Mi"}}, {"cpu": "100m"}),
    ],
)
def test_a_server_always_requests_cpu_and_memory(given: Manifest, requests: Manifest) -> None:
    resources = container(workload({"resources": given}))["resources"]
    # A limit without a request is the request: Kubernetes' own default.
    assert resources["requests"] == requests
    assert resources.get("limits", {}) == given.get("limits", {})


def test_peoples_options_reach_the_pod() -> None:
    options: Manifest = {
        "env": [{"name": "A", "value": "1"}],
        "nodeSelector": {"disk": "ssd"},
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "high",
        "serviceAccountName": "team",
        "affinity": {"nodeAffinity": {"x": 1}},
    }
    spec = pod(workload(options))
    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["priorityClassName"] == "high"
    assert spec["serviceAccountName"] == "team"
    assert spec["affinity"] == {"nodeAffinity": {"x": 1}}
    assert {"name": "A", "value": "1"} in container(workload(options))["env"]


def test_the_hash_says_of_which_template_a_pod_is() -> None:
    def hash_of(of: Workload) -> str:
        return template_hash(deployment(of)["spec"]["template"])

    assert hash_of(workload()) == hash_of(workload())
    assert hash_of(workload()) == hash_of(workload(replicas=5)), "another number of pods is no other revision"
    assert hash_of(workload()) != hash_of(workload(image="headrace/serving:2"))
    assert hash_of(workload()) != hash_of(workload({"env": [{"name": "A", "value": "1"}]}))


def test_pods_are_found_by_the_resource_they_belong_to() -> None:
    labels = deployment(workload())["spec"]["template"]["metadata"]["labels"]
    assert labels["headrace.dev/owner-uid"] == "uid-1"
    assert labels["headrace.dev/owner-kind"] == "InferenceService"
    assert labels["app.kubernetes.io/instance"] == "digits"
    selector = deployment(workload())["spec"]["selector"]["matchLabels"]
    assert "headrace.dev/owner-uid" not in selector, "a selector outlives the resource that it was made for"
