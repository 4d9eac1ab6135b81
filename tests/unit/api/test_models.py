"""What the models themselves refuse and compute; the table of bad specs in tests/api covers the rest."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from headrace.api import InferenceService, TrainingJob
from headrace.api.inferenceservice import Tensor
from headrace.api.meta import Resources, parse_duration, parse_quantity
from headrace.api.trainingjob import TrainingJobSpec


@pytest.mark.parametrize(
    ("text", "value"),
    # Kubernetes' own examples (k8s.io/apimachinery/pkg/api/resource, "Quantity").
    [
        ("100m", 0.1),
        ("0.1", 0.1),
        ("1.5Gi", 1.5 * 2**30),
        ("12e6", 12e6),
        ("5M", 5e6),
        ("1n", 1e-9),
        (3, 3),
        ("2Ei", 2**61),
    ],
)
def test_quantities(text: int | str, value: float) -> None:
    assert parse_quantity(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["1 Gi", "Gi", "1GB", ""])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 500m, 2 or 1Gi"):
        parse_quantity(text)


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("1h30m", 5400), ("1.5s", 1.5), ("1m0.5s", 60.5)])
def test_durations(text: str, seconds: float) -> None:
    # Values of Go's time.ParseDuration documentation.
    assert parse_duration(text).total_seconds() == seconds


def test_a_rule_refuses_in_python_with_the_same_words() -> None:
    with pytest.raises(ValidationError, match=r"\.requests: a request may not exceed the limit of the same resource"):
        Resources(requests={"memory": "2Gi"}, limits={"memory": "1Gi"})


def test_a_request_equal_to_its_limit_in_other_words_is_fine() -> None:
    Resources(requests={"cpu": "1000m"}, limits={"cpu": 1})


def output(**fields: Any) -> dict[str, Any]:
    return {"name": "label", "datatype": "FP32", "data": [0.5], **fields}


@pytest.mark.parametrize(
    "good",
    [
        output(),
        output(data=[1]),
        output(shape=[2, 2], data=[1, 2, 3, 4]),
        output(datatype="BOOL", data=[True]),
        output(datatype="BYTES", data=["unknown"]),
        output(datatype="INT64", data=[-1]),
    ],
)
def test_static_outputs(good: dict[str, Any]) -> None:
    Tensor.model_validate(good)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (output(shape=[3]), "has 1 values and shape"),
        (output(data=[]), "has 0 values"),
        (output(data=["a"]), "'a' is no FP32"),
        (output(datatype="INT64", data=[0.5]), "0.5 is no INT64"),
        (output(datatype="INT64", data=[True]), "True is no INT64"),
        (output(datatype="BYTES", data=[1]), "1 is no BYTES"),
    ],
)
def test_static_outputs_that_are_no_row(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Tensor.model_validate(bad)


def test_a_worker_has_a_process_per_gpu() -> None:
    spec = {"classifier": {"dataset": {"builtin": "Digits"}}, "numWorkers": 3, "gpu": {"count": 4}}
    assert TrainingJobSpec.model_validate(spec).processes == 12


def test_a_resource_keeps_what_the_api_server_adds_to_its_metadata() -> None:
    job = TrainingJob.model_validate(
        {
            "apiVersion": "headrace.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "a", "namespace": "b", "managedFields": [{"manager": "kubectl"}], "generation": 2},
            "spec": {"classifier": {"dataset": {"builtin": "Digits"}}},
        }
    )
    assert job.metadata.generation == 2
    assert job.spec.manifest()["restartPolicy"] == {"maxRestarts": 10, "window": "1h"}


def test_defaults_of_a_service_make_it_highly_available() -> None:
    service = InferenceService.model_validate({"spec": {"predictor": {"model": {"storageUri": "s3://models/x"}}}})
    assert (service.spec.predictor.min_replicas, service.spec.router.replicas) == (2, 2)
