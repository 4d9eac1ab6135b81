"""The kinds as a real API server serves them: defaults, docs, columns, merging."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.tools import tool
from tests.api.bad_specs import GOOD_JOB, GOOD_SERVICE, merge_patch
from tests.api.rest import APPLY, MERGE, Rest, path_of

Manifest = dict[str, Any]
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest.fixture(scope="module")
def rest(control_plane: Path) -> Rest:
    return Rest(control_plane)


@pytest.fixture(scope="module")
def kubectl(control_plane: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        command = [str(tool("kubectl")), "--kubeconfig", str(control_plane), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return run


def create(rest: Rest, base: Manifest, name: str, spec: Any = None) -> Manifest:
    manifest: Manifest = merge_patch(base, {"metadata": {"name": name}, "spec": spec or {}})
    answer = rest("POST", path_of(manifest, collection=True), manifest, fieldValidation="Strict")
    assert answer.accepted, answer.message
    return answer.body


def test_what_will_happen_is_written_into_the_resource(rest: Rest) -> None:
    spec = create(rest, GOOD_JOB, "defaults")["spec"]
    assert spec["topology"] == {
        "type": "AllReduce",
        "allReduce": "Ring",
        "sharding": "NoShard",
        "tensorParallel": 1,
        "zoneSpread": "Spread",
    }
    assert spec["checkpoint"] == {"interval": "30s", "keep": 2, "writers": "RankZero"}
    assert (spec["suspend"], spec["scheduling"]) == (False, {"timeout": "5m"})
    assert spec["restartPolicy"] == {"maxRestarts": 10, "window": "1h"}
    assert spec["classifier"]["hiddenSizes"] == [64]
    assert "env" not in spec
    assert "gpu" not in spec


def test_a_partly_given_object_is_filled_up(rest: Rest) -> None:
    service = create(rest, GOOD_SERVICE, "partly", {"predictor": {"circuitBreaker": {"slidingWindowSize": 100}}})
    assert service["spec"]["predictor"]["circuitBreaker"] == {
        "slidingWindowType": "CountBased",
        "slidingWindowSize": 100,
        "minimumNumberOfCalls": 5,
        "failureRateThreshold": 50,
        "slowCallRateThreshold": 100,
        "slowCallDurationThreshold": "60s",
        "waitDurationInOpenState": "5s",
        "permittedCallsInHalfOpenState": 3,
    }


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("trainingjob.spec.numWorkers", "Worker pods"),
        ("tj.spec.topology.zoneSpread", "workers are balanced over zones"),
        ("trainingjob.status.progress.throughput", "Samples per second over all workers"),
        ("trainingjob.spec.checkpoint.interval", "For example 250ms, 30s, 1h30m"),
        ("isvc.spec.fallback.timeout", "after it the next step is asked"),
        ("inferenceservice.spec.predictor.model.storageUri", "s3://models/digits"),
    ],
)
def test_kubectl_explain_reads_like_documentation(kubectl: Callable[..., str], field: str, words: str) -> None:
    assert words in " ".join(kubectl("explain", field).split())


def test_every_kind_is_in_the_category(kubectl: Callable[..., str], rest: Rest) -> None:
    create(rest, GOOD_JOB, "listed")
    create(rest, GOOD_SERVICE, "listed")
    listed = kubectl("get", "headrace", "-o", "name").split()
    assert {"trainingjob.headrace.dev/listed", "inferenceservice.headrace.dev/listed"} <= set(listed)


def table(rest: Rest, path: str) -> list[dict[str, Any]]:
    body = rest("GET", path, accept=TABLE).body
    names = [column["name"] for column in body["columnDefinitions"]]
    return [dict(zip(names, row["cells"], strict=True)) for row in body["rows"]]


NOW = "2026-01-02T03:04:05Z"


def ready(status: str, reason: str) -> list[Manifest]:
    return [{"type": "Ready", "status": status, "reason": reason, "message": "", "lastTransitionTime": NOW}]


def test_one_line_says_how_far_a_job_is(rest: Rest) -> None:
    job = create(rest, GOOD_JOB, "shown")
    status = {
        "workers": {"total": 3, "ready": 2, "succeeded": 0, "summary": "2/3"},
        "progress": {"percent": 40, "epoch": 4, "loss": "0.1234", "throughput": "9000"},
        "restarts": 1,
        "conditions": ready("True", "Training"),
    }
    answer = rest("PATCH", f"{path_of(job)}/status", {"status": status}, content_type=MERGE)
    assert answer.accepted, answer.message
    (row,) = table(rest, path_of(job))
    assert row.pop("Age")
    assert row == {
        "Name": "shown",
        "Workers": "2/3",
        "Servers": None,
        "Ready": "True",
        "Reason": "Training",
        "Progress": 40,
        "Epoch": 4,
        "Loss": "0.1234",
        "Samples/s": "9000",
        "Restarts": 1,
        "Model": None,
    }


def test_one_line_says_who_answers_for_a_service(rest: Rest) -> None:
    service = create(rest, GOOD_SERVICE, "shown")
    status = {
        "url": "http://shown.default.svc.cluster.local",
        "answering": "small",
        "predictor": {"ready": 0, "total": 2, "summary": "0/2"},
        "canary": {"phase": "Progressing", "percent": 25, "summary": "25% Progressing"},
        "shadow": {"summary": "3/200"},
        "router": {"ready": 2, "total": 2, "summary": "2/2"},
        "conditions": ready("False", "AnsweringFromFallback"),
    }
    answer = rest("PATCH", f"{path_of(service)}/status", {"status": status}, content_type=MERGE)
    assert answer.accepted, answer.message
    (row,) = table(rest, path_of(service))
    assert row.pop("Age")
    assert row == {
        "Name": "shown",
        "URL": "http://shown.default.svc.cluster.local",
        "Ready": "False",
        "Reason": "AnsweringFromFallback",
        "Answering": "small",
        "Predictor": "0/2",
        "Canary": "25% Progressing",
        "Shadow": "3/200",
        "Router": "2/2",
    }


@pytest.mark.parametrize("base", [GOOD_JOB, GOOD_SERVICE], ids=["TrainingJob", "InferenceService"])
def test_what_no_operator_has_seen_yet_is_not_taken_for_well(rest: Rest, base: Manifest) -> None:
    """kstatus takes a resource without conditions for Current; Unknown is InProgress."""
    made = create(rest, base, "unseen")
    (row,) = table(rest, path_of(made))
    assert (row["Ready"], row["Reason"]) == ("Unknown", "Pending")
    mine = {"observedGeneration": 1, "conditions": ready("False", "Starting")}
    body = {"apiVersion": base["apiVersion"], "kind": base["kind"], "metadata": {"name": "unseen"}, "status": mine}
    answer = rest("PATCH", f"{path_of(made)}/status", body, content_type=APPLY, fieldManager="headrace")
    assert answer.body["status"] == mine, "nothing of the default stays"


def test_status_is_changed_through_its_own_door_only(rest: Rest) -> None:
    job = create(rest, GOOD_JOB, "doors")
    rest("PATCH", path_of(job), {"status": {"attempt": 7}}, content_type=MERGE)
    rest("PATCH", f"{path_of(job)}/status", {"spec": {"numWorkers": 9}}, content_type=MERGE)
    now = rest("GET", path_of(job)).body
    assert "attempt" not in now["status"]
    assert now["spec"]["numWorkers"] == 3
    assert now["metadata"]["generation"] == 1


def test_a_status_without_conditions_types_is_refused(rest: Rest) -> None:
    job = create(rest, GOOD_JOB, "typed")
    bad = {"status": {"conditions": [{"type": "Ready", "status": "Yes"}]}}
    answer = rest("PATCH", f"{path_of(job)}/status", bad, content_type=MERGE)
    assert answer.status == 422
    assert {"status.conditions[0].status", "status.conditions[0].reason"} <= answer.fields


def test_two_appliers_own_their_own_entries_of_a_list(rest: Rest) -> None:
    service = create(rest, GOOD_SERVICE, "shared", {"fallback": None})

    def apply(manager: str, variable: str, value: str) -> Manifest:
        env = {
            "predictor": {"env": [{"name": variable, "value": value}], "model": {"storageUri": "s3://models/digits"}}
        }
        body = {"apiVersion": service["apiVersion"], "kind": service["kind"], "spec": env}
        body["metadata"] = {"name": "shared"}
        answer = rest("PATCH", path_of(service), body, content_type=APPLY, fieldManager=manager)
        assert answer.accepted, answer.message
        return answer.body

    apply("team", "LOG_LEVEL", "debug")
    apply("platform", "REGION", "north")
    merged = apply("team", "LOG_LEVEL", "info")
    assert merged["spec"]["predictor"]["env"] == [
        {"name": "LOG_LEVEL", "value": "info"},
        {"name": "REGION", "value": "north"},
    ]


def test_columns_match_what_the_crd_says(rest: Rest) -> None:
    for path in (Path(__file__).parents[2] / "crds").glob("*.yaml"):
        wanted = yaml.safe_load(path.read_text())
        live = rest("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{wanted['metadata']['name']}").body
        conditions = {item["type"]: item["status"] for item in live["status"]["conditions"]}
        assert conditions["NamesAccepted"] == "True"
        assert "NonStructuralSchema" not in conditions
        assert live["spec"]["versions"] == wanted["spec"]["versions"]
