"""What a resource says when its reconcile does not succeed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from controllers.runtime.errors import TerminalError
from controllers.runtime.reconciler import parse, with_ready_false
from headrace.api import TrainingJob

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EARLIER = "2026-03-01T10:00:00Z"


def job(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "digits", "namespace": "ml", "uid": "u", "generation": 3},
        "spec": {"classifier": {"dataset": {"builtin": "Digits"}}, **spec},
    }


def condition(**fields: Any) -> dict[str, Any]:
    base = {"type": "Ready", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": EARLIER}
    return base | fields


def test_every_wrong_field_is_named_with_what_was_found() -> None:
    with pytest.raises(TerminalError) as caught:
        parse(TrainingJob, job(numWorkers=0, restartPolicy={"maxRestarts": "many"}))
    assert caught.value.reason == "InvalidSpec"
    assert "spec.numWorkers: " in caught.value.message
    assert "(found 0)" in caught.value.message
    assert "spec.restartPolicy.maxRestarts: " in caught.value.message


def test_what_a_newer_release_writes_into_a_spec_is_no_fault_of_it() -> None:
    """While a release is rolled out, the new CRD's defaults are in every resource and the old operator reads them."""
    newer = job(colour="blue", topology={"type": "AllReduce", "shape": {"of": "things"}}, env=[{"name": "A", "x": 1}])
    resource = parse(TrainingJob, newer | {"status": {"attempt": 3, "mood": "good"}})
    assert resource.status is not None
    assert resource.status.attempt == 3
    assert resource.spec == parse(TrainingJob, job(topology={"type": "AllReduce"}, env=[{"name": "A"}])).spec


def test_a_status_of_a_newer_release_is_no_fault_of_the_spec() -> None:
    resource = parse(TrainingJob, job() | {"status": {"attempt": "none"}})
    assert resource.status is None


def test_ready_becomes_false_and_the_rest_of_the_status_stays() -> None:
    status = {"attempt": 2, "conditions": [condition(), condition(type="Running")]}
    new, news = with_ready_false(job() | {"status": status}, "PaintMissing", "buy some", NOW)
    assert new["attempt"] == 2
    assert new["observedGeneration"] == 3
    assert new["conditions"][1] == condition(type="Running")
    assert new["conditions"][0] == {
        "type": "Ready",
        "status": "False",
        "reason": "PaintMissing",
        "message": "buy some",
        "lastTransitionTime": "2026-03-01T12:00:00Z",
        "observedGeneration": 3,
    }
    assert news


def test_the_transition_time_moves_only_with_the_status_and_saying_it_again_is_no_news() -> None:
    before = condition(status="False", reason="PaintMissing", message="buy some")
    new, news = with_ready_false(job() | {"status": {"conditions": [before]}}, "PaintMissing", "buy some", NOW)
    assert new["conditions"][0]["lastTransitionTime"] == EARLIER
    assert not news
    new, news = with_ready_false(job() | {"status": {"conditions": [before]}}, "BrushMissing", "buy one", NOW)
    assert new["conditions"][0]["lastTransitionTime"] == EARLIER
    assert news
