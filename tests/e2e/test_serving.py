"""InferenceService on the three-zone cluster: a standard client is answered, whatever dies behind the address."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from sklearn.datasets import load_digits
from tritonclient.grpc import InferenceServerClient as grpc_client
from tritonclient.grpc import InferInput as GrpcInput

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for
from tests.e2e.installation import Zones
from tests.e2e.resources import inference_service, training_job
from tests.e2e.traffic import traffic

SERVICE = "digits"


def ready(kube: Kube, name: str = SERVICE) -> Manifest | None:
    service = kube.get("inferenceservice", name)
    return service if is_true(service, "Ready") else None


def components(kube: Kube, component: str) -> list[Manifest]:
    return kube.list("pods", f"app.kubernetes.io/instance={SERVICE},app.kubernetes.io/component={component}")


@pytest.fixture(scope="module")
def models(kube: Kube) -> tuple[str, str]:
    """Two trained models: the primary's and a smaller one's."""
    small = training_job("digits-small", workers=1, epochs=10)
    small["spec"]["classifier"]["hiddenSizes"] = [8]
    kube.apply(training_job("digits-large", workers=1), small)

    def uri(name: str) -> str:
        def finished() -> str | None:
            job = kube.get("trainingjob", name)
            assert not is_true(job, "Failed"), condition(job, "Failed")["message"]
            return str(job["status"]["modelUri"]) if is_true(job, "Succeeded") else None

        return wait_for(f"{name} finishes", finished, seconds=120)

    return uri("digits-large"), uri("digits-small")


@pytest.fixture(scope="module")
def service(kube: Kube, models: tuple[str, str]) -> Iterator[Manifest]:
    """A ready service with three routers, one per zone, and two predictors."""
    manifest = inference_service(SERVICE, *models)
    manifest["spec"]["router"]["replicas"] = 3
    kube.apply(manifest)
    wait_for("the service is ready", lambda: ready(kube), seconds=120)
    yield manifest
    kube.delete("inferenceservice", SERVICE)


def test_a_standard_client_gets_the_models_answer(kube: Kube, service: Manifest) -> None:
    images, labels = load_digits(return_X_y=True)
    with kube.forward(f"service/{SERVICE}", 80) as port:
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(SERVICE)
        metadata = client.get_model_metadata(SERVICE)
        assert [tensor["name"] for tensor in metadata["inputs"]] == ["input"]
        batch = triton.InferInput("input", [len(images), 64], "FP32")
        batch.set_data_from_numpy(images.astype(np.float32))
        result = client.infer(SERVICE, [batch])
        assert result.get_response()["model_name"] == SERVICE
        assert (result.as_numpy("label").ravel() == labels).mean() > 0.95


def test_grpc_and_rows_get_the_same_answer(kube: Kube, service: Manifest) -> None:
    images, _ = load_digits(return_X_y=True)
    images = images[:20].astype(np.float32)
    with kube.forward(f"service/{SERVICE}", 9000) as port, grpc_client(f"127.0.0.1:{port}") as client:
        assert client.is_server_ready()
        assert client.is_model_ready(SERVICE)
        assert client.get_model_metadata(SERVICE).inputs[0].name == "input"
        batch = GrpcInput("input", list(images.shape), "FP32")
        batch.set_data_from_numpy(images)
        labels = client.infer(SERVICE, [batch], client_timeout=10).as_numpy("label").ravel().tolist()
        wrong = GrpcInput("input", [1, 63], "FP32")
        wrong.set_data_from_numpy(images[:1, :63])
        with pytest.raises(triton.InferenceServerException, match=r"'input': expected shape \[-1, 64\]") as refused:
            client.infer(SERVICE, [wrong])
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    with kube.forward(f"service/{SERVICE}", 80) as port:
        body = json.dumps({"rows": images.tolist(), "outputs": ["label"]}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{SERVICE}/rows", body, timeout=10) as response:
            assert [row["label"] for row in json.load(response)["rows"]] == labels
            assert response.headers["headrace-step"] == "predictor"


def test_wrong_input_is_named(kube: Kube, service: Manifest) -> None:
    with kube.forward(f"service/{SERVICE}", 80) as port:
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        batch = triton.InferInput("input", [1, 63], "FP32")
        batch.set_data_from_numpy(np.zeros((1, 63), np.float32))
        with pytest.raises(triton.InferenceServerException) as refused:
            client.infer(SERVICE, [batch])
    message = str(refused.value)
    assert "[400]" in message
    assert "input" in message
    assert "63" in message
    assert "64" in message


def exchange(port: int, *pieces: bytes) -> bytes:
    """What comes back on a connection of its own; the last piece may be the beginning of what never comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_bad_input_is_refused_by_name_and_leaves_nothing_behind(kube: Kube, service: Manifest) -> None:
    path = f"/v2/models/{SERVICE}/infer".encode()

    def post(body: bytes, *headers: bytes, size: int | None = None) -> bytes:
        lines = [
            b"POST %s HTTP/1.1" % path,
            b"Host: e2e",
            b"Connection: close",
            b"Content-Length: %d" % (size or len(body)),
            *headers,
        ]
        return b"\r\n".join([*lines, b"", body])

    def tensor(data: str, **changes: object) -> bytes:
        fields = {"name": "input", "shape": [1, 64], "datatype": "FP32", **changes}
        return json.dumps({"inputs": [{**fields, "data": "DATA"}]}).replace('"DATA"', data).encode()

    row = json.dumps([0.0] * 64)
    binary = json.dumps(
        {"inputs": [{"name": "input", "shape": [1, 64], "datatype": "FP32", "parameters": {"binary_data_size": 256}}]}
    ).encode()
    length = b"Inference-Header-Content-Length: %d" % len(binary)
    cases = {
        "NaN": (post(tensor(row.replace("0.0]", "NaN]"))), b" 400 ", [b"'input'", b"NaN"]),
        "shape": (post(tensor(row, shape=[64, 1])), b" 400 ", [b"'input'", b"[-1, 64]", b"[64, 1]"]),
        "datatype": (post(tensor(row, datatype="FP64")), b" 400 ", [b"expected datatype FP32, found FP64"]),
        "half a tensor": (
            post(binary + b"\0" * 128, length),
            b" 400 ",
            [b"is 256, the body has 128"],
        ),
        "huge": (post(b"", size=2**30), b" 413 ", [b"67108864 bytes"]),
        "no HTTP": (b"\x16\x03\x01\x02\x00 hello", b" 400 ", [b"no HTTP request"]),
        "slow": (post(b'{"inputs":', size=1000), b" 408 ", [b"within 30 s"]),
    }
    with kube.forward(f"service/{SERVICE}", 80) as port, concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        answers = {name: pool.submit(exchange, port, sent) for name, (sent, _, _) in cases.items()}
        good = exchange(port, post(binary + b"\0" * 256, length))
        assert b" 200 " in good.split(b"\r\n", 1)[0], "well-formed binary data is answered meanwhile"
        for name, (_, status, words) in cases.items():
            answer = answers[name].result(timeout=60)
            assert status in answer.split(b"\r\n", 1)[0], (name, answer)
            for word in words:
                assert word in answer, (name, answer)
        metrics = exchange(port, b"GET /metrics HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n\r\n").decode()
        assert f'headrace_inference_breaker_state{{service="{SERVICE}",step="predictor"}} 0.0' in metrics
    assert is_true(kube.get("inferenceservice", SERVICE), "Ready")


def test_replicas_are_spread_over_zones_and_guarded(kube: Kube, service: Manifest) -> None:
    zone_of = {
        node["metadata"]["name"]: node["metadata"]["labels"].get("topology.kubernetes.io/zone")
        for node in kube.list("nodes")
    }
    assert {zone_of[pod["spec"]["nodeName"]] for pod in components(kube, "router")} == {"a", "b", "c"}
    assert len({zone_of[pod["spec"]["nodeName"]] for pod in components(kube, "predictor")}) == 2
    assert {item["metadata"]["name"] for item in kube.list("pdb")} >= {SERVICE, f"{SERVICE}-predictor"}


def test_the_primary_dies_and_the_smaller_model_answers_until_it_is_back(kube: Kube, service: Manifest) -> None:
    with traffic(kube, SERVICE) as report:
        kube.delete("pod", *[pod["metadata"]["name"] for pod in components(kube, "predictor")], force=True)
        wait_for(
            "status says who answers",
            lambda: kube.get("inferenceservice", SERVICE)["status"]["answering"] == "small",
            seconds=30,
        )
        degraded = kube.get("inferenceservice", SERVICE)
        assert is_true(degraded, "Available")
        assert not is_true(degraded, "Ready")
        wait_for("the primary is back", lambda: ready(kube), seconds=90)
        wait_for(
            "the primary answers",
            lambda: kube.get("inferenceservice", SERVICE)["status"]["answering"] == "predictor",
            seconds=30,
        )
    assert report.failed == 0, report
    assert report.steps.get("small", 0) > 0, report
    assert report.steps.get("predictor", 0) > 0, report
    assert report.steps.get("static", 0) == 0, report
    assert "FallbackAnswering" in kube.events(SERVICE)


def test_a_rolling_update_loses_no_request(kube: Kube, service: Manifest) -> None:
    before = {pod["metadata"]["uid"] for part in ("router", "predictor") for pod in components(kube, part)}
    with traffic(kube, SERVICE) as report:
        for part in ("router", "predictor"):
            service["spec"][part]["env"] = [{"name": "GENERATION", "value": "2"}]
        kube.apply(service)

        def replaced() -> bool:
            now = {pod["metadata"]["uid"] for part in ("router", "predictor") for pod in components(kube, part)}
            return not now & before and ready(kube) is not None

        wait_for("every pod is replaced", replaced, seconds=180)
    assert report.failed == 0, report
    assert report.retries == 0, report
    assert set(report.steps) == {"predictor"}, report


def test_a_zone_goes_dark_and_no_request_fails(kube: Kube, service: Manifest, zones: Zones) -> None:
    with traffic(kube, SERVICE, zone="a") as report, zones.paused("c"):
        wait_for("the zone's node is NotReady", lambda: not zones.ready("c"), seconds=90)
        wait_for(
            "a router runs in place of the lost one",
            lambda: kube.get("inferenceservice", SERVICE)["status"]["router"]["ready"] == 3,
            seconds=120,
        )
    wait_for("the zone is back", lambda: zones.ready("c"), seconds=60)
    assert report.failed == 0, report
    assert report.steps.get("predictor", 0) > report.total / 2, report
    wait_for("the service is ready", lambda: ready(kube), seconds=120)


def test_a_model_that_does_not_exist_is_said(kube: Kube, service: Manifest) -> None:
    broken = inference_service("broken", "s3://headrace/no/such/model.onnx")
    kube.apply(broken)
    wanted = wait_for(
        "Ready says why",
        lambda: (c := condition(kube.get("inferenceservice", "broken"), "Ready"))["reason"] == "ModelLoadFailed" and c,
        seconds=90,
    )
    assert wanted["status"] == "False"
    assert "no/such/model.onnx" in wanted["message"]
    wait_for(
        "the static answer serves meanwhile",
        lambda: is_true(kube.get("inferenceservice", "broken"), "Available"),
        seconds=60,
    )
    kube.delete("inferenceservice", "broken")
