"""Events tell a change once."""

from __future__ import annotations

from collections.abc import Iterator

from controllers.runtime.objects import POD, Manifest
from controllers.runtime.plan import Plan
from headrace.api import InferenceService
from tests.unit.inferenceservice.factory import (
    DEGRADED,
    WELL,
    Cluster,
    again,
    plan,
    pod,
    report,
    service,
    terminated,
    well,
    workloads,
)


def told(result: Plan) -> list[tuple[str, str]]:
    return [(event.type, event.reason) for event in result.events]


def say(cluster: Cluster, of: InferenceService, what: object) -> None:
    for index in range(2):
        cluster.put(POD, pod(workloads(of)["router"], f"digits-{index}", report=what))


def settled(of: InferenceService, cluster: Cluster) -> Iterator[tuple[InferenceService, Plan]]:
    """The service before each plan, and the plan; the first is not yielded."""
    result = plan(of, cluster)
    while True:
        of = again(of, result)
        result = plan(of, cluster)
        yield of, result


def test_the_primary_is_lost_and_found() -> None:
    of = service()
    cluster = well(of)
    plans = settled(of, cluster)
    assert told(next(plans)[1]) == []
    say(cluster, of, DEGRADED)
    lost = next(plans)[1]
    assert told(lost) == [("Warning", "FallbackAnswering")]
    assert "no replica is ready" in lost.events[0].note
    assert told(next(plans)[1]) == []
    say(cluster, of, WELL)
    assert told(next(plans)[1]) == [("Normal", "PrimaryRecovered")]
    assert told(next(plans)[1]) == []


def test_the_next_fallback_is_told_too() -> None:
    of = service()
    cluster = well(of)
    plans = settled(of, cluster)
    next(plans)
    say(cluster, of, DEGRADED)
    next(plans)
    say(cluster, of, report("static", predictor=("NotReady", "none"), small=("Open", "errors"), static="Answering"))
    (event,) = next(plans)[1].events
    assert event.reason == "FallbackAnswering"
    assert "step static" in event.note
    assert "small is Open (errors)" in event.note


def test_a_service_that_starts_with_its_fallback_is_no_warning() -> None:
    of = service()
    cluster = Cluster()
    plans = settled(of, cluster)
    next(plans)
    cluster.take(plan(of, cluster))
    cluster.deploy(of, "predictor", ready=False)
    cluster.deploy(of, "router", report=DEGRADED)
    assert told(next(plans)[1]) == [("Normal", "FallbackAnswering")]
    cluster.deploy(of, "predictor")
    say(cluster, of, WELL)
    assert told(next(plans)[1]) == [("Normal", "PrimaryRecovered")]


def test_a_model_that_does_not_load_is_told_once_however_often_it_is_tried() -> None:
    of = service()
    cluster = well(of)
    plans = settled(of, cluster)
    next(plans)
    tries: list[Manifest] = [
        {"state": terminated(78, "no such object")},
        {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": terminated(78, "no such object")},
        {"lastState": terminated(78, "no such object"), "restartCount": 1},
    ]
    events = []
    for container in tries:
        cluster.put(POD, pod(workloads(of)["predictor"], "digits-predictor-0", ready=False, container=container))
        events += told(next(plans)[1])
    assert events == [("Warning", "ModelLoadFailed")]


def test_a_service_at_whose_address_nothing_answers_any_more() -> None:
    of = service()
    cluster = well(of)
    plans = settled(of, cluster)
    next(plans)
    cluster.deploy(of, "router", ready=False)
    assert told(next(plans)[1]) == [("Warning", "Unavailable")]
    assert told(next(plans)[1]) == []
    cluster.deploy(of, "router", report=WELL)
    assert told(next(plans)[1]) == [("Normal", "PrimaryAnswers")]


def test_an_update_is_told_at_its_start_and_at_its_end() -> None:
    old, new = service(), service(predictor={"model": {"storageUri": "s3://models/v2"}}, generation=2)
    cluster = well(old)
    first = plan(old, cluster)
    started = plan(again(new, first), cluster)
    assert told(started) == [("Normal", "RolloutStarted")]
    cluster.take(started)
    cluster.deploy(new, "predictor")
    finished = plan(again(new, started), cluster)
    assert told(finished) == [("Normal", "RolloutComplete")]
    assert told(plan(again(new, finished), cluster)) == []
