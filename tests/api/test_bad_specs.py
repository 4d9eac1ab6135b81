"""Every mistake that a schema can see is refused at `kubectl apply`, with the field and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.api import FeatureSet, InferenceService, TrainingJob
from tests.api import bad_specs
from tests.api.bad_feature_sets import FEATURE_SETS, GOOD_FEATURE_SET
from tests.api.bad_specs import GOOD_JOB, GOOD_SERVICE, Bad, merge_patch
from tests.api.rest import MERGE, Rest, path_of

MODELS = {"TrainingJob": TrainingJob, "InferenceService": InferenceService, "FeatureSet": FeatureSet}
BAD = (*bad_specs.BAD, *FEATURE_SETS)


@pytest.fixture(scope="module")
def rest(control_plane: Path) -> Rest:
    return Rest(control_plane)


def test_the_table_has_rows_enough_and_names_each_once() -> None:
    names = [(bad.base["kind"], bad.name) for bad in BAD]
    assert len(names) >= 40
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("good", [GOOD_JOB, GOOD_SERVICE, GOOD_FEATURE_SET], ids=lambda good: good["kind"])
def test_the_good_specs_are_accepted(rest: Rest, good: dict[str, Any]) -> None:
    answer = rest("POST", path_of(good, collection=True), good, dryRun="All", fieldValidation="Strict")
    assert answer.accepted, answer.message
    MODELS[good["kind"]].model_validate(good)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.base['kind']}: {bad.name}")
def test_a_bad_spec_is_refused_with_field_and_remedy(rest: Rest, bad: Bad) -> None:
    manifest = bad.manifest
    answer = rest("POST", path_of(manifest, collection=True), manifest, dryRun="All", fieldValidation="Strict")
    assert answer.status in (400, 422), f"accepted: {manifest['spec']}"
    assert bad.words in answer.message
    if bad.field:
        assert bad.field in answer.fields, answer.message


@pytest.mark.parametrize("bad", [bad for bad in BAD if bad.python], ids=lambda bad: f"{bad.base['kind']}: {bad.name}")
def test_python_refuses_the_same(bad: Bad) -> None:
    with pytest.raises(ValidationError):
        MODELS[bad.base["kind"]].model_validate(bad.manifest)


FIXED: dict[str, Any] = {
    "numWorkers": 4,
    "image": "registry.example/trainer:2",
    "classifier": {"epochs": 3},
    "args": ["--fast"],
    "gpu": {"count": 1},
    "topology": {"zoneSpread": "Pack"},
    "storage": {"uri": "s3://other/place"},
    "checkpoint": {"interval": "1s"},
    "resources": {"requests": {"cpu": "1"}},
    "env": [{"name": "A", "value": "1"}],
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "imagePullSecrets": [{"name": "a"}],
    "priorityClassName": "high",
    "serviceAccountName": "trainer",
}


@pytest.fixture(scope="module")
def running_job(rest: Rest) -> dict[str, Any]:
    job: dict[str, Any] = merge_patch(GOOD_JOB, {"metadata": {"name": "running"}})
    answer = rest("POST", path_of(job, collection=True), job)
    assert answer.accepted, answer.message
    return job


@pytest.mark.parametrize("field", FIXED)
def test_a_running_job_cannot_become_another(rest: Rest, running_job: dict[str, Any], field: str) -> None:
    patch = {"spec": {field: FIXED[field]}}
    answer = rest("PATCH", path_of(running_job), patch, content_type=MERGE, dryRun="All", fieldValidation="Strict")
    assert answer.status == 422
    assert f"{field} cannot change once the job exists" in answer.message
    assert "create a TrainingJob with another name, or delete this one first" in answer.message
    assert f"spec.{field}" in answer.fields


@pytest.mark.parametrize("gone", ["nodeSelector", "ttlSecondsAfterFinished"])
def test_a_running_job_cannot_exchange_one_field_for_another(rest: Rest, gone: str) -> None:
    """The number of fields stays the same then."""
    spec = {"nodeSelector": {"disk": "ssd"}, "ttlSecondsAfterFinished": 60}
    job: dict[str, Any] = merge_patch(GOOD_JOB, {"metadata": {"name": f"exchanged-{gone.lower()}"}, "spec": spec})
    assert rest("POST", path_of(job, collection=True), job).accepted
    exchanged = {"spec": {gone: None, "priorityClassName": "high"}}
    answer = rest("PATCH", path_of(job), exchanged, content_type=MERGE, dryRun="All")
    assert answer.status == 422
    assert "cannot change once the job exists" in answer.message
    without = {"spec": {"ttlSecondsAfterFinished": None}}
    assert rest("PATCH", path_of(job), without, content_type=MERGE, dryRun="All").accepted


def test_how_often_a_running_job_is_restarted_may_change(rest: Rest, running_job: dict[str, Any]) -> None:
    patch = {"spec": {"restartPolicy": {"maxRestarts": 2}}, "metadata": {"labels": {"a": "b"}}}
    answer = rest("PATCH", path_of(running_job), patch, content_type=MERGE, fieldValidation="Strict")
    assert answer.accepted, answer.message


def test_an_elastic_job_is_scaled_within_its_bounds(rest: Rest) -> None:
    bounds = {"metadata": {"name": "elastic"}, "spec": {"minWorkers": 2, "maxWorkers": 4}}
    job: dict[str, Any] = merge_patch(GOOD_JOB, bounds)
    assert rest("POST", path_of(job, collection=True), job).accepted
    answer = rest("PATCH", f"{path_of(job)}/scale", {"spec": {"replicas": 4}}, content_type=MERGE)
    assert answer.accepted, answer.message
    answer = rest("PATCH", f"{path_of(job)}/scale", {"spec": {"replicas": 5}}, content_type=MERGE)
    assert "lies between minWorkers and maxWorkers" in answer.message


def test_applying_the_same_again_changes_nothing(rest: Rest, running_job: dict[str, Any]) -> None:
    answer = rest("PATCH", path_of(running_job), running_job, content_type=MERGE)
    assert answer.accepted, answer.message
