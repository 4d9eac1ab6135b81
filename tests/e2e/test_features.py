"""FeatureSet on the three-zone cluster: from Parquet to an answer over HTTP and a model's card, whatever is killed."""

from __future__ import annotations

import json
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for
from cluster.release import SYSTEM_NAMESPACE

EXAMPLE = Path(__file__).parents[2] / "examples" / "featureset-drivers.yaml"
NAME = "drivers"
NAMES = ["trips", "rating", "km_per_trip", "busy", "city_bucket", "trip_share"]
REWRITE = textwrap.dedent(
    """\
    # The table anew: 400 drivers with one row each, told by their trips.
    import io, json, os, pathlib
    from datetime import UTC, datetime
    import pyarrow as pa, pyarrow.parquet as parquet
    from headrace.storage import Store
    uri = json.loads(pathlib.Path("/etc/headrace/features/featureset.json").read_text())["spec"]["source"]["uri"]
    ids, now = list(range(1001, 1401)), pa.array([datetime.now(UTC)] * 400, pa.timestamp("us", "UTC"))
    table = pa.table({"driver_id": ids, "event_timestamp": now, "trips": [7000] * 400, "distance_km": [7.0] * 400,
                      "rating": [5.0] * 400, "city": ["Turku"] * 400})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    Store.open(uri).write_bytes("part-0.parquet", buffer.getvalue())
    """
)
FORGET = textwrap.dedent(
    """\
    # What a store that lost its disk comes back with: nothing of this FeatureSet.
    import os, time
    import redis
    from headrace.features.online import connect
    store = connect(os.environ["HEADRACE_ONLINE_STORE_URI"])
    deadline = time.monotonic() + 60
    while True:  # it was killed a moment ago
        try:
            store.ping()
            break
        except redis.RedisError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    store.delete(*store.scan_iter("headrace:features:{%s/*" % os.environ["POD_NAMESPACE"]))
    """
)


def feature_set(kube: Kube) -> Manifest:
    return kube.get("featureset", NAME)


def ready(kube: Kube) -> Manifest | None:
    found = feature_set(kube)
    return found if is_true(found, "Ready") else None


def ask(port: int, driver: int) -> dict[str, Any]:
    body = json.dumps({"entities": {"driver_id": [driver]}, "inputs": {"trip_km": [3.5]}}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/features", body, timeout=5) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def trips(port: int, driver: int) -> Any:
    return ask(port, driver)["rows"][0][0]


def inside(kube: Kube, code: str) -> None:
    """Run Python where the FeatureSet's credentials are."""
    kube.run("exec", f"deployment/{NAME}-features", "--", "python", "-c", code)


@pytest.fixture(scope="module")
def drivers(kube: Kube) -> Iterator[dict[str, Manifest]]:
    """The example, its table in a folder of this namespace, and refreshes slow enough to be hurt."""
    text = EXAMPLE.read_text().replace("s3://headrace/demo/", f"s3://headrace/{kube.namespace}/")
    objects = {f"{item['kind']}/{item['metadata']['name']}": item for item in yaml.safe_load_all(text)}
    objects[f"FeatureSet/{NAME}"]["spec"]["refresh"] = {"maxRowsPerSecond": 60, "pollInterval": "2s"}
    kube.apply(objects["ConfigMap/drivers"], objects["TrainingJob/drivers-table"], objects[f"FeatureSet/{NAME}"])
    wait_for("the features are served", lambda: ready(kube), seconds=120)
    yield objects
    kube.delete("featureset", NAME)


@pytest.fixture
def port(kube: Kube, drivers: dict[str, Manifest]) -> Iterator[int]:
    with kube.forward(f"service/{NAME}-features", 80) as number:
        yield number


def test_parquet_becomes_answers_and_a_model_carries_the_hashes(
    kube: Kube, drivers: dict[str, Manifest], port: int
) -> None:
    kube.apply(drivers["TrainingJob/drivers-model"])
    found = feature_set(kube)
    assert found["status"]["online"]["entities"] == 500
    answer = ask(port, 1001)
    assert answer["features"] == NAMES
    assert set(answer["statuses"][0]) == {"Present"}
    assert set(ask(port, 5)["statuses"][0]) == {"Missing"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/features", b'{"entities": {"rider": [1]}}', timeout=5)
    assert refused.value.code == 400
    assert "expected driver_id, found rider" in json.load(refused.value)["error"]

    def trained() -> Manifest | None:
        job = kube.get("trainingjob", "drivers-model")
        assert not is_true(job, "Failed"), condition(job, "Failed")["message"]
        return job if is_true(job, "Succeeded") else None

    job = wait_for("the model is trained", trained, seconds=90)
    uri = job["status"]["modelUri"].rpartition("/")[0]
    read = f"from headrace.storage import Store; print(Store.open({uri!r}).read_bytes('card.json').decode())"
    card = json.loads(kube.run("exec", f"deployment/{NAME}-features", "--", "python", "-c", read))
    hashes = {item["name"]: item["hash"] for item in found["status"]["features"]}
    assert card["features"]["hash"] == found["status"]["hash"]
    used = ("rating", "km_per_trip", "busy", "trip_share")
    assert card["features"]["features"] == {name: hashes[name] for name in used}


def test_a_refresh_that_is_killed_midway_leaves_the_old_rows_and_goes_on(kube: Kube, port: int) -> None:
    before = feature_set(kube)["status"]
    old = trips(port, 1001)
    inside(kube, REWRITE)
    number = before["refresh"]["number"] + 1

    def writing() -> str | None:
        for pod in kube.list("pods", f"batch.kubernetes.io/job-name={NAME}-refresh-{number}"):
            report = json.loads(pod["metadata"].get("annotations", {}).get("headrace.dev/report", "{}"))
            if report.get("phase") == "Writing" and report["done"] > 0:
                return str(pod["metadata"]["name"])
        return None

    pod = wait_for("the refresh writes", writing, seconds=40)
    kube.run("delete", "pod", pod, "--force", "--grace-period=0")
    assert trips(port, 1001) == old

    def done() -> Manifest | None:
        status: Manifest = feature_set(kube)["status"]
        return status if (status["refresh"]["number"], status["refresh"]["phase"]) == (number, "Succeeded") else None

    after = wait_for("the refresh ends", done, seconds=60)
    assert after["online"]["entities"] == 400
    assert after["online"]["version"] != before["online"]["version"]
    assert after["refresh"]["trigger"] == "SourceChanged"
    wait_for("servers see the new rows", lambda: trips(port, 1001) == 7000, seconds=10)
    assert "going on with a refresh" in kube.run("logs", f"job/{NAME}-refresh-{number}")
    assert is_true(feature_set(kube), "Fresh")


def test_the_store_is_killed_and_back_and_when_it_is_empty_it_is_loaded_again(kube: Kube, port: int) -> None:
    number = feature_set(kube)["status"]["refresh"]["number"]
    system = kube.within(SYSTEM_NAMESPACE)
    system.run("delete", "pod", "headrace-redis-0", "--force", "--grace-period=0")

    errors: list[tuple[int, str]] = []

    def answers() -> bool:
        try:
            return bool(trips(port, 1002) == 7000)
        except urllib.error.HTTPError as error:
            errors.append((error.code, json.load(error)["error"]))
            return False

    wait_for("features are answered again", answers, seconds=60)
    wait_for("the set is ready again", lambda: ready(kube), seconds=30)
    # Its rows were on its disk.
    assert feature_set(kube)["status"]["refresh"]["number"] == number
    inside(kube, FORGET)

    def loaded() -> bool:
        refresh = feature_set(kube)["status"]["refresh"]
        return bool(refresh["number"] > number and refresh["phase"] == "Succeeded")

    wait_for("it is loaded again", loaded, seconds=60)
    assert feature_set(kube)["status"]["refresh"]["trigger"] == "StoreLost"
    wait_for("features are answered again", answers, seconds=20)
    wait_for("the set is ready again", lambda: ready(kube), seconds=20)
    # What clients heard meanwhile named the store.
    assert all(code == 503 and "online store" in said for code, said in errors), errors
