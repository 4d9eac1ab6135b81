"""Which image and command a predictor has by its model, and models that come from a TrainingJob."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controllers.inferenceservice import admission, builders, models, plan
from controllers.inferenceservice.observed import Observed, gather
from controllers.runtime.errors import WaitError
from controllers.runtime.objects import Key, Manifest
from controllers.runtime.workload import pod_template
from headrace.api import InferenceService
from tests.unit.inferenceservice.factory import NAMESPACE, NOW, SETTINGS, STATIC, Cluster, service

REFERENCE: Manifest = {"model": {"trainingJobRef": {"name": "train"}}}


def pod(of: InferenceService) -> Any:
    return pod_template(builders.predictor(of, SETTINGS, 2))["spec"]


@pytest.mark.parametrize(
    ("format_", "image"),
    [
        ("ONNX", "headrace/serving:0.1.0"),
        ("XGBoost", "headrace/serving:0.1.0"),
        ("ScikitLearn", "headrace/serving:0.1.0"),
        ("PyTorch", "headrace/serving-torch:0.1.0"),
        ("PMML", "headrace/serving-pmml:0.1.0"),
    ],
)
def test_the_image_has_the_library_of_the_format(format_: str, image: str) -> None:
    model = {"modelFormat": format_, "storageUri": "s3://models/m"}
    assert pod(service(predictor={"model": model}))["containers"][0]["image"] == image
    own = service(predictor={"model": model, "image": "registry.example/mine:1"})
    assert pod(own)["containers"][0]["image"] == "registry.example/mine:1"


def test_what_is_more_than_format_and_uri_goes_as_json() -> None:
    model = {"modelFormat": "ScikitLearn", "storageUri": "s3://models/m", "trustedTypes": ["a.B"]}
    command = pod(service(predictor={"model": model}))["containers"][0]["command"]
    assert json.loads(command[command.index("--model") + 1]) == model


def test_code_of_a_config_map_is_mounted() -> None:
    code = {"configMap": {"name": "mine", "key": "predictor.py"}}
    spec = pod(service(predictor={"model": {"modelFormat": "Python", "code": code}}))
    (container,) = spec["containers"]
    command = container["command"]
    assert command[command.index("--code") + 1] == "/etc/headrace/predictor/predictor.py"
    mount = {"name": "code", "mountPath": "/etc/headrace/predictor", "readOnly": True}
    assert mount in container["volumeMounts"]
    items = [{"key": "predictor.py", "path": "predictor.py"}]
    assert {"name": "code", "configMap": {"name": "mine", "items": items}} in spec["volumes"]


def test_code_of_a_repository_is_cloned_before() -> None:
    git = {"repo": "https://git.example/team/models.git", "ref": "v1", "path": "serve/predictor.py"}
    spec = pod(service(predictor={"model": {"modelFormat": "Python", "code": {"git": git}}}))
    (clone,) = spec["initContainers"]
    values = {item["name"]: item.get("value") for item in clone["env"]}
    assert (values["GIT_REPO"], values["GIT_REF"], values["GIT_FIELD"]) == (
        git["repo"],
        "v1",
        "predictor.model.code.git",
    )
    command = spec["containers"][0]["command"]
    assert command[command.index("--code") + 1] == "/workspace/repository/serve/predictor.py"


def test_a_container_of_ones_own() -> None:
    container = {"args": ["--fast"], "port": 9000, "modelName": "theirs"}
    of = service(predictor={"model": None, "container": container, "image": "mlserver:1"})
    (made,) = pod(of)["containers"]
    assert "command" not in made
    assert made["args"] == ["--fast"]
    assert made["ports"] == [{"name": "http", "containerPort": 9000, "protocol": "TCP"}]
    assert "envFrom" not in made
    remote = builders.chain(of, SETTINGS).predictor
    assert (remote.port, remote.model_name) == (9000, "theirs")
    (rule,) = builders.predictor(of, SETTINGS, 2).ingress
    assert rule["ports"] == [{"port": 9000, "protocol": "TCP"}]


def job(*conditions: tuple[str, str, str], uri: str = "", uid: str = "job-1", secret: str | None = None) -> Manifest:
    storage = {"secretRef": {"name": secret}} if secret else {}
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "train", "namespace": NAMESPACE, "uid": uid, "resourceVersion": "1"},
        "spec": {"storage": storage},
        "status": {
            "modelUri": uri,
            "conditions": [{"type": kind, "status": status, "message": text} for kind, status, text in conditions],
        },
    }


DONE = ("Succeeded", "True", "")


def observed(of: InferenceService, found: Manifest | None) -> Observed:
    cluster = Cluster()
    if found is not None:
        reduced = models.TRAINING_JOB.reduce
        assert reduced is not None
        cluster.objects[models.TRAINING_JOB, Key(NAMESPACE, "train")] = reduced(found)
    return gather(of, cluster)


@pytest.mark.parametrize(
    ("found", "reason", "says"),
    [
        (None, "TrainingJobNotFound", "predictor.model names the TrainingJob train, which does not exist"),
        (job(("Ready", "False", "3 of 4 run")), "WaitingForTrainingJob", "to succeed; the job says how far it is"),
        (job(("Failed", "True", "no data")), "TrainingJobFailed", "has failed: no data; run it again"),
        (job(DONE), "TrainingJobHasNoModel", "said of no model: publish one with run.publish"),
    ],
)
def test_a_job_that_has_no_model_yet_is_waited_for(found: Manifest | None, reason: str, says: str) -> None:
    of = service(predictor=REFERENCE, fallback=[STATIC])
    with pytest.raises(WaitError, match=says) as waits:
        plan.plan(of, observed(of, found), SETTINGS, NOW)
    assert waits.value.reason == reason


def test_the_model_of_a_job_is_found_and_stays_until_the_spec_changes() -> None:
    of = service(predictor=REFERENCE, fallback=[STATIC])
    finished = job(DONE, uri="s3://models/train/model/model.onnx", secret="lake")
    first = plan.plan(of, observed(of, finished), SETTINGS, NOW)
    assert first.status is not None
    (pin,) = first.status["models"]
    assert (pin["name"], pin["uri"], pin["uid"], pin["generation"]) == (
        "predictor",
        "s3://models/train/model",
        "job-1",
        1,
    )
    deployment = next(
        item.manifest
        for item in first.applies
        if item.manifest["metadata"]["name"] == "digits-predictor" and item.manifest["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "s3://models/train/model" in container["command"]
    assert container["envFrom"] == [{"secretRef": {"name": "lake"}}]

    again = job(("Ready", "False", "it runs again"), uid="job-2")
    later = service(predictor=REFERENCE, fallback=[STATIC], status=first.status)
    assert plan.plan(later, observed(later, again), SETTINGS, NOW).status == first.status
    changed = service(predictor=REFERENCE, fallback=[STATIC], status=first.status, generation=2)
    with pytest.raises(WaitError, match="waits for the TrainingJob train to succeed"):
        plan.plan(changed, observed(changed, again), SETTINGS, NOW)


def test_the_secret_that_the_spec_names_wins_over_the_job_s() -> None:
    named = {"model": {"trainingJobRef": {"name": "train"}, "secretRef": {"name": "mine"}}}
    of = service(predictor=named, fallback=[])
    found = observed(of, job(DONE, uri="s3://m/train/model/model.onnx", secret="lake"))
    resolved, _ = models.resolve(of, found.jobs)
    assert resolved.spec.predictor.model is not None
    assert resolved.spec.predictor.model.secret_ref is not None
    assert resolved.spec.predictor.model.secret_ref.name == "mine"


LOCAL: Manifest = {"inference": "Local", "model": {"storageUri": "s3://models/large", "secretRef": {"name": "lake"}}}


def names(of: InferenceService, cluster: Cluster) -> set[str]:
    cluster.take(plan.plan(of, gather(of, cluster), SETTINGS, NOW))
    kinds = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    return {f"{type_.kind}/{key.name}" for type_, key in cluster.objects if type_.kind in kinds}


def test_a_local_model_is_in_the_routers_and_has_no_pods() -> None:
    of = service(predictor=LOCAL, fallback=[STATIC])
    assert names(of, Cluster()) == {
        f"{kind}/digits" for kind in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy")
    }
    made = builders.chain(of, SETTINGS).predictor
    assert made.model is not None
    assert made.model.storage_uri == "s3://models/large"
    spec = pod_template(builders.router(of, SETTINGS, "chain"))["spec"]
    mounted = {item["mountPath"] for item in spec["containers"][0]["volumeMounts"]}
    assert "/etc/headrace/credentials/lake" in mounted
    status = plan.plan(of, gather(of, Cluster()), SETTINGS, NOW).status
    assert status is not None
    assert status["predictor"]["summary"] == "0/0"
    ready = {item["type"]: (item["status"], item["reason"]) for item in status["conditions"]}
    assert ready["PredictorReady"] == ("True", "InsideRouter")


def test_predictors_stay_until_routers_with_the_model_are_everywhere() -> None:
    cluster = Cluster()
    remote = service(fallback=[STATIC])
    names(remote, cluster)
    cluster.deploy(remote, "router")
    cluster.deploy(remote, "predictor")
    local = service(predictor=LOCAL, fallback=[STATIC], generation=2)
    assert "Deployment/digits-predictor" in names(local, cluster)
    cluster.deploy(local, "router")
    assert "Deployment/digits-predictor" not in names(local, cluster)


def test_batching_is_told_to_the_predictor() -> None:
    command = pod(service(predictor={"batching": {"maxSize": 16}}))["containers"][0]["command"]
    assert command[command.index("--batch-size") :][:4] == ["--batch-size", "16", "--batch-latency", "5ms"]


def test_the_request_log_has_a_folder_of_its_own_and_the_routers_its_secret() -> None:
    plain = service(predictor={"inference": "Remote"}, fallback=[], request_log={"percent": 5})
    kept = builders.chain(plain, SETTINGS).request_log
    assert kept is not None
    assert (kept.storage_uri, kept.percent) == ("s3://headrace/demo/digits/requests", 5)
    container = pod_template(builders.router(plain, SETTINGS, "chain"))["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "headrace-storage"}}]
    named = service(fallback=[], request_log={"storageUri": "s3://lake/log", "secretRef": {"name": "lake"}})
    container = pod_template(builders.router(named, SETTINGS, "chain"))["spec"]["containers"][0]
    assert "/etc/headrace/credentials/lake" in {item["mountPath"] for item in container["volumeMounts"]}
    assert "envFrom" not in container


def test_every_secret_that_the_spec_names_is_asked_about_and_no_child_that_a_local_model_has_not() -> None:
    registry = {"trackingUri": "http://mlflow", "model": "m", "alias": "a", "secretRef": {"name": "mlflow"}}
    of = service(
        predictor={"inference": "Local", "model": {"registry": registry}},
        fallback=[],
        request_log={"secretRef": {"name": "lake"}},
    )
    found = {(item.type.kind, item.key.name) for item in admission.references(of, created=True) if item.key is not None}
    assert {("Secret", "mlflow"), ("Secret", "lake"), ("Deployment", "digits")} <= found
    assert ("Deployment", "digits-predictor") not in found
