"""Storage that the chart does not bring: an S3 by URI and Secret, with keys and a bucket of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from sklearn.datasets import load_digits

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for
from tests.e2e.resources import inference_service, pod, ready_pod, training_job
from tests.e2e.test_training import failed_job, finished

PORT = 7070
BUCKET = "lake"
KEYS = {"AWS_ACCESS_KEY_ID": "lakekey", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-lake"}
STORE_NAMESPACE = "e2e-object-store"
ENDPOINT = f"http://store.{STORE_NAMESPACE}.svc.cluster.local:{PORT}"


def secret(name: str, **data: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


@pytest.fixture(scope="module")
def store(kube: Kube) -> Iterator[str]:
    """An S3 server in a namespace that has nothing to do with Headrace; the value is its endpoint."""
    there = kube.within(STORE_NAMESPACE)
    there.run("delete", "namespace", STORE_NAMESPACE, "--ignore-not-found")
    there.run("create", "namespace", STORE_NAMESPACE)

    def from_keys(variable: str, key: str) -> Manifest:
        return {"name": variable, "valueFrom": {"secretKeyRef": {"name": "keys", "key": key}}}

    container = {
        "args": ["--port", f":{PORT}", "--health", "/healthz", "posix", "--sidecar", "/data/metadata", "/data/buckets"],
        "env": [
            from_keys("ROOT_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
            from_keys("ROOT_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
        ],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
        # A bucket is a folder, and the kubelet makes that of a subPath.
        "volumeMounts": [
            {"name": "data", "mountPath": path, "subPath": path.removeprefix("/data/")}
            for path in ("/data/metadata", "/data/buckets", f"/data/buckets/{BUCKET}")
        ],
    }
    volumes = [{"name": "data", "emptyDir": {}}]
    there.apply(
        secret("keys", **KEYS),
        pod("store", [], image="s3", labels={"app": "store"}, container=container, volumes=volumes),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "store"},
            "spec": {"selector": {"app": "store"}, "ports": [{"port": PORT}]},
        },
    )
    wait_for("the store serves", lambda: ready_pod(there, "store"), seconds=60)
    yield ENDPOINT
    there.run("delete", "namespace", STORE_NAMESPACE, "--wait=false")


def stored(folder: str, keys: str, bucket: str = BUCKET) -> dict[str, Any]:
    return {"uri": f"s3://{bucket}/{folder}", "secretRef": {"name": keys}}


def service(name: str, uri: str, keys: str) -> Manifest:
    """A small service whose model lies in the store."""
    manifest = inference_service(name, uri, minReplicas=1, maxReplicas=1)
    manifest["spec"]["predictor"]["model"]["secretRef"] = {"name": keys}
    manifest["spec"]["router"]["replicas"] = 1
    return manifest


@pytest.fixture(scope="module")
def applied(kube: Kube, store: str) -> Iterator[None]:
    """All resources of this module at once, but the service of the model that is not trained yet."""
    denied = KEYS | {"AWS_SECRET_ACCESS_KEY": "of-another-lake"}
    kube.apply(
        secret("lake", **KEYS, AWS_ENDPOINT_URL=store),
        secret("wrong", **denied, AWS_ENDPOINT_URL=store),
        training_job("writes", workers=1, storage=stored("team/digits", "lake")),
        training_job("wrong-key", workers=1, storage=stored("team/denied", "wrong")),
        training_job("no-bucket", workers=1, storage=stored("team/digits", "lake", "dry-lake")),
        service("model-wrong-key", f"s3://{BUCKET}/team/digits/model", "wrong"),
        service("model-no-bucket", "s3://dry-lake/team/digits/model", "lake"),
    )
    yield
    kube.delete("trainingjob", "writes", "wrong-key", "no-bucket", wait=False)
    kube.delete("inferenceservice", "reads", "model-wrong-key", "model-no-bucket", wait=False)


def test_a_job_writes_there_and_a_service_serves_from_there(kube: Kube, applied: None) -> None:
    job = wait_for("the job succeeds", lambda: finished(kube, "writes"), seconds=120)
    assert job["status"]["modelUri"] == f"s3://{BUCKET}/team/digits/model/model.onnx"
    kube.apply(service("reads", job["status"]["modelUri"], "lake"))
    wait_for("the service is ready", lambda: is_true(kube.get("inferenceservice", "reads"), "Ready"), seconds=90)
    images, labels = load_digits(return_X_y=True)
    with kube.forward("service/reads", 80) as port:
        batch = triton.InferInput("input", list(images.shape), "FP32")
        batch.set_data_from_numpy(images.astype(np.float32))
        predicted = triton.InferenceServerClient(f"127.0.0.1:{port}").infer("reads", [batch]).as_numpy("label")
    assert (predicted.ravel() == labels).mean() > 0.9


REFUSALS = [
    pytest.param("wrong-key", f"s3://{BUCKET}/", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", id="wrong key"),
    pytest.param("no-bucket", "s3://dry-lake/", "the bucket does not exist at http", id="no bucket"),
]


@pytest.mark.parametrize(("name", "uri", "words"), REFUSALS)
def test_a_job_that_cannot_write_there_fails_with_the_remedy(
    kube: Kube, applied: None, name: str, uri: str, words: str
) -> None:
    job = wait_for("the job fails", lambda: failed_job(kube, name), seconds=120)
    failed = condition(job, "Failed")
    assert failed["reason"] == "InvalidConfiguration"
    assert uri in failed["message"]
    assert words in failed["message"]
    assert job["status"]["attempt"] == 1, "another attempt would find the same"


@pytest.mark.parametrize(("name", "uri", "words"), REFUSALS)
def test_a_service_whose_model_cannot_be_read_there_says_so(
    kube: Kube, applied: None, name: str, uri: str, words: str
) -> None:
    def refused() -> Manifest | None:
        found = condition(kube.get("inferenceservice", f"model-{name}"), "Ready")
        return found if found["reason"] == "ModelLoadFailed" else None

    ready = wait_for("Ready says why", refused, seconds=120)
    assert ready["status"] == "False"
    assert uri in ready["message"]
    assert words in ready["message"]
