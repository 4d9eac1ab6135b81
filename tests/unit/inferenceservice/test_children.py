"""The children of an InferenceService, as far as a user would notice."""

from __future__ import annotations

import re
from typing import Any

import pytest

from controllers.inferenceservice.controller import InferenceServiceController
from controllers.runtime.controller import Caches, Controller
from controllers.runtime.objects import (
    CONFIG_MAP,
    DEPLOYMENT,
    HPA,
    NETWORK_POLICY,
    PDB,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Manifest,
    ObjectType,
)
from headrace.api import InferenceService
from headrace.api.chain import Chain
from tests.unit.inferenceservice.factory import NAME, SETTINGS, SMALL, STATIC, Cluster, plan, service, well


def children(of: InferenceService, type_: ObjectType) -> dict[str, Manifest]:
    return {
        item.manifest["metadata"]["name"]: item.manifest for item in plan(of, Cluster()).applies if item.type == type_
    }


def container(of: InferenceService, name: str) -> Any:
    return children(of, DEPLOYMENT)[name]["spec"]["template"]["spec"]["containers"][0]


def chain(of: InferenceService) -> Manifest:
    (found,) = children(of, CONFIG_MAP).values()
    return found


def test_the_controller_is_one() -> None:
    controller: Controller[InferenceService, Any] = InferenceServiceController(SETTINGS)
    caches: Caches = Cluster()
    assert controller.gather(service(), caches).router.deployment is None


def test_the_router_reads_the_chain_that_it_was_made_for() -> None:
    of = service(predictor={"timeout": "2s", "circuitBreaker": {"slidingWindowSize": 7}})
    read = Chain.model_validate_json(chain(of)["data"]["chain.json"])
    assert read.name == NAME
    assert read.predictor.host == "digits-predictor.demo.svc.cluster.local."
    assert read.predictor.timeout == "2s"
    assert read.predictor.circuit_breaker.sliding_window_size == 7
    assert read.fallback == of.spec.fallback
    pod = children(of, DEPLOYMENT)["digits"]["spec"]["template"]["spec"]
    (volume,) = [item for item in pod["volumes"] if item["name"] == "chain"]
    assert volume["configMap"]["name"] == chain(of)["metadata"]["name"]
    command = container(of, "digits")["command"]
    assert command[:4] == ["python", "-m", "headrace.serving", "router"]
    (mount,) = [item for item in container(of, "digits")["volumeMounts"] if item["name"] == "chain"]
    assert command[command.index("--chain") + 1] == f"{mount['mountPath']}/chain.json"


def test_another_chain_is_another_config_map_and_so_a_rolling_update() -> None:
    of, other = service(), service(fallback=[STATIC])
    assert chain(of)["immutable"] is True
    assert chain(of)["metadata"]["name"] != chain(other)["metadata"]["name"]
    assert chain(of) == chain(service())
    before, after = (children(one, DEPLOYMENT)["digits"]["spec"]["template"] for one in (of, other))
    assert before["metadata"]["annotations"] != after["metadata"]["annotations"]
    predictors = [children(one, DEPLOYMENT)["digits-predictor"] for one in (of, other)]
    assert predictors[0] == predictors[1], "the primary does not roll for a change of its fallbacks"


def test_the_predictor_serves_the_model() -> None:
    command = container(service(predictor={"model": {"storageUri": "s3://models/v2"}}), "digits-predictor")["command"]
    assert command[:4] == ["python", "-m", "headrace.serving", "predictor"]
    for option, value in (("--name", NAME), ("--model-format", "ONNX"), ("--storage-uri", "s3://models/v2")):
        assert command[command.index(option) + 1] == value


def test_the_address_is_ports_80_and_9000_of_the_routers() -> None:
    services = children(service(), SERVICE)
    router = services["digits"]["spec"]
    assert [(port["port"], port["targetPort"]) for port in router["ports"]] == [(80, "http"), (9000, "grpc")]
    assert router["selector"].items() <= _labels(service(), "digits").items()
    assert not router["selector"].items() <= _labels(service(), "digits-predictor").items()
    assert services["digits-predictor"]["spec"]["clusterIP"] == "None"
    assert services["digits-predictor"]["spec"]["publishNotReadyAddresses"] is False


def test_only_routers_and_monitoring_reach_the_predictors() -> None:
    policies = children(service(), NETWORK_POLICY)
    (rule,) = policies["digits-predictor"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]
    routers, monitoring = rule["from"]
    assert routers["podSelector"]["matchLabels"].items() <= _labels(service(), "digits").items()
    assert monitoring == {"namespaceSelector": {"matchLabels": {"headrace.dev/monitoring": "true"}}}
    open_ports = [{"port": port, "protocol": "TCP"} for port in (8080, 9000)]
    assert policies["digits"]["spec"]["ingress"] == [{"ports": open_ports}]


def test_only_the_router_reports_so_only_it_has_a_token() -> None:
    pods = {name: item["spec"]["template"]["spec"] for name, item in children(service(), DEPLOYMENT).items()}
    assert pods["digits"]["automountServiceAccountToken"] is True
    assert pods["digits-predictor"]["automountServiceAccountToken"] is False


class TestCredentials:
    def test_without_a_secret_the_installations_storage_is_used(self) -> None:
        of = service()
        assert list(children(of, SECRET)) == ["headrace-storage"]
        for name in ("digits", "digits-predictor"):
            assert container(of, name)["envFrom"] == [{"secretRef": {"name": "headrace-storage"}}]

    def test_the_predictors_own_secret_is_its_environment(self) -> None:
        of = service(
            predictor={"model": {"storageUri": "s3://m/x", "secretRef": {"name": "team-s3"}}}, fallback=[STATIC]
        )
        assert container(of, "digits-predictor")["envFrom"] == [{"secretRef": {"name": "team-s3"}}]
        assert "envFrom" not in container(of, "digits"), "a router that loads no model needs no credentials"
        assert children(of, SECRET) == {}

    def test_each_fallback_models_secret_is_a_folder(self) -> None:
        def step(name: str, secret: str | None) -> Manifest:
            reference = {"secretRef": {"name": secret}} if secret else {}
            return {"name": name, "model": {"storageUri": f"s3://{name}/m"} | reference}

        of = service(fallback=[step("one", "team.a"), step("two", "team-b"), step("three", "team.a"), SMALL])
        mounts = {item["mountPath"]: item["name"] for item in container(of, "digits")["volumeMounts"]}
        volumes = {
            item["name"]: item for item in children(of, DEPLOYMENT)["digits"]["spec"]["template"]["spec"]["volumes"]
        }
        for secret in ("team.a", "team-b"):
            volume = volumes[mounts[f"/etc/headrace/credentials/{secret}"]]
            assert volume["secret"] == {"secretName": secret, "optional": True}
            assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", volume["name"]), "names of volumes are DNS labels"
        assert len(mounts) == 5, "tmp, chain, traffic and one folder for each Secret"
        assert container(of, "digits")["envFrom"] == [{"secretRef": {"name": "headrace-storage"}}]


def test_the_workers_account_is_made_where_somebody_uses_it() -> None:
    own = {"serviceAccountName": "team"}
    assert list(children(service(router=own), SERVICE_ACCOUNT)) == ["headrace-worker"]
    assert children(service(router=own, predictor=own), SERVICE_ACCOUNT) == {}


class TestAutoscaling:
    of = service(predictor={"minReplicas": 2, "maxReplicas": 6, "targetCpuUtilization": 60})

    def test_more_than_the_least_makes_an_autoscaler(self) -> None:
        (scaler,) = children(self.of, HPA).values()
        assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 6)
        assert scaler["spec"]["scaleTargetRef"]["name"] == "digits-predictor"
        (metric,) = scaler["spec"]["metrics"]
        assert metric["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}
        assert container(self.of, "digits-predictor")["resources"]["requests"]["cpu"], "shares of what?"
        assert children(service(), HPA) == {}

    @pytest.mark.parametrize(("now", "applied"), [(2, 2), (5, 5), (9, 6), (1, 2)])
    def test_its_number_of_pods_is_left_as_it_is(self, now: int, applied: int) -> None:
        cluster = well(self.of)
        cluster.objects[DEPLOYMENT, ("demo", "digits-predictor")]["spec"]["replicas"] = now  # type: ignore[index]
        (wanted,) = [
            item.manifest
            for item in plan(self.of, cluster).applies
            if item.manifest["metadata"]["name"] == "digits-predictor" and item.type == DEPLOYMENT
        ]
        assert wanted["spec"]["replicas"] == applied

    def test_without_it_the_spec_rules(self) -> None:
        cluster = well(self.of)
        cluster.objects[DEPLOYMENT, ("demo", "digits-predictor")]["spec"]["replicas"] = 5  # type: ignore[index]
        result = plan(service(), cluster)
        (wanted,) = [
            item.manifest
            for item in result.applies
            if item.manifest["metadata"]["name"] == "digits-predictor" and item.type == DEPLOYMENT
        ]
        assert wanted["spec"]["replicas"] == 2
        assert [(item.type, item.key.name) for item in result.deletes] == [(HPA, "digits-predictor")]


class TestPruning:
    def test_nothing_is_deleted_while_all_is_wanted(self) -> None:
        assert plan(service(), well(service())).deletes == ()

    def test_a_budget_for_a_single_pod_goes(self) -> None:
        one = service(router={"replicas": 1})
        deletes = plan(one, well(service())).deletes
        assert [(item.type, item.key.name, item.uid) for item in deletes] == [
            (PDB, "digits", "uid-of-PodDisruptionBudget-digits")
        ]

    def test_what_is_being_deleted_is_left_alone(self) -> None:
        cluster = well(service())
        cluster.objects[PDB, ("demo", "digits")]["metadata"]["deletionTimestamp"] = "2026-11-25T10:00:00Z"  # type: ignore[index]
        assert plan(service(router={"replicas": 1}), cluster).deletes == ()

    def test_the_chain_of_routers_that_still_run_stays(self) -> None:
        old, new = service(), service(fallback=[STATIC])
        cluster = well(old)
        assert plan(new, cluster).deletes == (), "the routers have not changed yet"
        cluster.take(plan(new, cluster))
        assert plan(new, cluster).deletes == (), "routers of the old revision still run"
        cluster.deploy(new, "router")
        (gone,) = plan(new, cluster).deletes
        assert (gone.type, gone.key.name) == (CONFIG_MAP, chain(old)["metadata"]["name"])


def test_a_service_on_its_way_out_is_left_to_the_garbage_collector() -> None:
    of = service()
    leaving = of.model_copy(
        update={"metadata": of.metadata.model_copy(update={"deletion_timestamp": "2026-11-25T10:00:00Z"})}
    )
    result = plan(leaving, well(of))
    assert (result.applies, result.deletes, result.status, result.events) == ((), (), None, ())


def _labels(of: InferenceService, name: str) -> dict[str, str]:
    labels: dict[str, str] = children(of, DEPLOYMENT)[name]["spec"]["template"]["metadata"]["labels"]
    return labels
