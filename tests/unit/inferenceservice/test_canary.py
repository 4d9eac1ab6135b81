"""A canary from its first pod to promotion or rollback, as the plan sees it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from controllers.runtime.objects import DEPLOYMENT, NETWORK_POLICY, POD, SERVICE, Key, Manifest
from controllers.runtime.plan import Plan
from headrace.api import InferenceService
from headrace.api.latency import bucket
from headrace.api.routing import TRAFFIC, Traffic
from tests.unit.inferenceservice.factory import (
    NOW,
    WELL,
    again,
    condition,
    plan,
    pod,
    service,
    terminated,
    waiting,
    well,
    workloads,
)

NEW_MODEL = {"storageUri": "s3://models/v2"}
STEPS = [{"percent": 10, "pause": "30s"}, {"percent": 50, "pause": "30s"}]
CANARY: Manifest = {
    "model": NEW_MODEL,
    "steps": STEPS,
    "analysis": {"interval": "10s", "minimumRequests": 100},
}
GOOD = {"requests": 200, "latency": {str(bucket(0.01)): 200}}
BAD = {"requests": 200, "errors": 40, "fallbacks": 40, "latency": {str(bucket(0.01)): 200}}


def canary_service(
    canary: Manifest | None = CANARY, predictor: Manifest | None = None, **more: Any
) -> InferenceService:
    """A service with a canary."""
    made = service(predictor={"minReplicas": 4, "maxReplicas": 4} | (predictor or {}), **more)
    if canary is None:
        return made
    return InferenceService.model_validate(
        made.manifest() | {"spec": made.spec.manifest() | {"canary": canary}, "metadata": made.metadata.manifest()}
    )


class World:
    """A cluster in which the service is well, its time, and what the plans have said so far."""

    def __init__(self, of: InferenceService | None = None) -> None:
        self.of = of or canary_service()
        self.cluster = well(canary_service(canary=None))
        self.now = NOW
        self.events: list[str] = []
        self.last = Plan()

    def plan(self, seconds: float = 0) -> Plan:
        """One reconcile, `seconds` later, carried out."""
        self.now += timedelta(seconds=seconds)
        self.last = plan(self.of, self.cluster, self.now)
        self.cluster.take(self.last)
        for item in self.last.annotates:
            found = self.cluster.get(item.type, item.key)
            assert found is not None
            annotations = {**found["metadata"]["annotations"], **item.annotations}
            found["metadata"]["annotations"] = {k: v for k, v in annotations.items() if v is not None}
        self.of = again(self.of, self.last)
        self.events += [event.reason for event in self.last.events if event.reason.startswith("Canary")]
        return self.last

    def change(self, to: InferenceService) -> None:
        """Another spec."""
        self.of = to.model_copy(update={"status": self.of.status})

    @property
    def state(self) -> Any:
        assert self.last.status is not None
        return self.last.status.get("canary")

    @property
    def deployments(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.cluster.all(DEPLOYMENT)}

    @property
    def told(self) -> Traffic | None:
        """What the routers were told last; all the same."""
        texts = {item["metadata"]["annotations"].get(TRAFFIC) for item in self.routers()}
        assert len(texts) == 1
        (text,) = texts
        return Traffic.model_validate_json(text) if text else None

    def routers(self) -> list[Manifest]:
        pods = self.cluster.all(POD)
        return [item for item in pods if item["metadata"]["labels"]["app.kubernetes.io/component"] == "router"]

    def canaries(self, count: int, **how: Any) -> None:
        """So many pods of the canary."""
        workload = workloads(self.of)["canary"]
        for index in range(count):
            self.cluster.put(POD, pod(workload, f"{workload.name}-{index}", **how))

    def report(self, canary: Manifest, stable: Manifest = GOOD, revision: str | None = None) -> None:
        """All routers count the same."""
        told = self.told
        assert told is not None
        for item in self.routers():
            traffic = {"revision": revision or told.revision, "stable": stable, "canary": canary}
            item["metadata"]["annotations"]["headrace.dev/report"] = json.dumps({**WELL, "traffic": traffic})

    def begin(self) -> None:
        """Until the canary gets its first percent."""
        self.plan()
        self.canaries(1)
        self.plan()
        assert self.state["percent"] == 10, self.state


def test_it_starts_beside_the_predictor_and_gets_nothing_before_it_is_ready() -> None:
    world = World()
    world.plan()
    assert world.deployments == {"digits", "digits-predictor", "digits-canary"}
    made = world.cluster.objects
    names = {(type_, key.name) for type_, key in made}
    assert {(SERVICE, "digits-canary"), (NETWORK_POLICY, "digits-canary")} <= names
    (deployment,) = [item for item in world.cluster.all(DEPLOYMENT) if item["metadata"]["name"] == "digits-canary"]
    assert deployment["spec"]["replicas"] == 1
    assert "s3://models/v2" in deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert world.told is not None
    assert world.told.canary is not None
    assert (world.told.canary.percent, world.told.canary.host) == (0, "digits-canary.demo.svc.cluster.local.")
    assert (world.state["phase"], world.state["percent"]) == ("Starting", 0)
    assert "10 % waits for 1 canary pods" in world.state["message"]
    assert condition(world.last)["status"] == "True", "the primary answers as before"
    assert condition(world.last, "Promoted")["status"] == "Unknown"


def test_steps_go_up_while_checks_pass_and_the_pauses_are_over() -> None:
    world = World()
    world.begin()
    assert world.told is not None
    assert world.told.canary is not None
    assert world.told.canary.percent == 10
    world.plan(10)
    assert (world.state["verdict"], world.state["percent"]) == ("Waiting", 10)
    world.report(GOOD)
    world.plan(10)
    assert (world.state["verdict"], world.state["percent"]) == ("Pass", 10), "the pause is not over"
    assert world.state["canary"]["requests"] == 400, "of both routers"
    world.plan(10)
    assert (world.state["step"], world.state["percent"]) == (2, 10)
    assert "50 % waits for 2 canary pods" in world.state["message"]
    world.canaries(2)
    world.plan()
    assert world.state["percent"] == 50
    assert world.events == ["CanaryStarted", "CanaryStep", "CanaryStep"]


def promote(world: World) -> None:
    """Through all steps."""
    world.begin()
    world.report(GOOD)
    world.plan(30)
    world.canaries(2)
    world.plan()
    world.report(GOOD)
    world.plan(30)
    assert world.state["phase"] == "Promoting", world.state


def test_when_all_steps_have_passed_the_predictor_becomes_what_the_canary_is() -> None:
    world = World()
    promote(world)
    predictor = world.cluster.get(DEPLOYMENT, Key("demo", "digits-predictor"))
    assert predictor is not None
    assert "s3://models/v2" in predictor["spec"]["template"]["spec"]["containers"][0]["command"]
    assert world.told is not None
    assert world.told.canary is not None
    assert world.told.canary.percent == 50, "the canary goes on until the predictor is updated"
    world.cluster.deploy(moved(), "predictor")
    world.plan()
    assert (world.state["phase"], world.state["summary"]) == ("Promoted", "Promoted")
    assert world.deployments == {"digits", "digits-predictor"}
    assert world.told is None
    assert condition(world.last, "Promoted")["status"] == "True"
    assert condition(world.last)["status"] == "True"
    assert world.events[-2:] == ["CanaryPromoting", "CanaryPromoted"]


def moved(canary: Manifest | None = None) -> InferenceService:
    """The spec after the promoted model was moved to the predictor."""
    return canary_service(canary, predictor={"model": NEW_MODEL})


@pytest.mark.parametrize("canary", [None, CANARY], ids=["removed", "left"])
def test_moving_the_promoted_model_to_the_predictor_restarts_nothing(canary: Manifest | None) -> None:
    world = World()
    promote(world)
    world.cluster.deploy(moved(), "predictor")
    world.plan()
    before = json.dumps(world.cluster.all(DEPLOYMENT), sort_keys=True)
    world.change(moved(canary))
    world.plan()
    assert json.dumps(world.cluster.all(DEPLOYMENT), sort_keys=True) == before
    assert (world.state is None) is (canary is None)


def test_a_promoted_canary_stays_promoted_when_steps_change_and_begins_anew_when_the_model_does() -> None:
    world = World()
    promote(world)
    world.cluster.deploy(moved(), "predictor")
    world.plan()
    world.change(canary_service({**CANARY, "steps": [{"percent": 1}]}))
    world.plan()
    assert world.state["phase"] == "Promoted"
    world.change(canary_service({**CANARY, "model": {"storageUri": "s3://models/v3"}}))
    world.plan()
    assert world.state["phase"] == "Starting"


def test_a_canary_that_worsens_errors_is_rolled_back_with_its_figures() -> None:
    world = World()
    world.begin()
    world.report(BAD)
    world.plan(10)
    assert (world.state["phase"], world.state["percent"]) == ("RolledBack", 0)
    assert world.told is None
    assert world.deployments == {"digits", "digits-predictor"}
    assert world.state["canary"]["errorRate"] == 20
    promoted = condition(world.last, "Promoted")
    assert (promoted["status"], promoted["reason"]) == ("False", "RolledBack")
    assert "at 10 %: error rate 20.00 % (80 of 400 requests)" in promoted["message"]
    (event,) = [item for item in world.last.events if item.reason == "CanaryRolledBack"]
    assert (event.type, "error rate 20.00 %" in event.note) == ("Warning", True)
    assert condition(world.last)["status"] == "True"
    world.plan(600)
    assert world.state["phase"] == "RolledBack", "it is not tried again by itself"
    world.cluster.drop(POD, "digits-canary-0")
    world.change(canary_service({**CANARY, "analysis": {"maxErrorRateIncrease": 30}}))
    world.plan()
    assert world.state["phase"] == "Starting", "another threshold is another try"


def test_counts_of_another_percent_decide_nothing() -> None:
    world = World()
    world.begin()
    world.report(BAD, revision="of-before")
    world.plan(10)
    assert (world.state["phase"], world.state["verdict"]) == ("Progressing", "Waiting")
    assert "none of 2 routers has reported" in world.state["message"]


def test_between_two_checks_nothing_is_written() -> None:
    world = World()
    world.begin()
    world.report(GOOD)
    world.plan(10)
    before = world.last.status
    world.report(BAD)
    result = world.plan(1)
    assert result.status == before
    assert result.requeue_after == timedelta(seconds=9)
    assert not result.annotates


def test_a_model_that_cannot_be_loaded_is_rolled_back_before_it_gets_a_request() -> None:
    world = World()
    world.plan()
    world.canaries(1, ready=False, container={"state": terminated(78, "no such object")})
    world.plan()
    assert world.state["phase"] == "RolledBack"
    assert "ModelLoadFailed" in world.state["message"]
    assert "no such object" in world.state["message"]
    assert condition(world.last)["status"] == "True"


def test_what_may_pass_by_itself_is_waited_for() -> None:
    world = World()
    world.plan()
    world.canaries(1, ready=False, container={"state": waiting("ImagePullBackOff", "no route")})
    world.plan()
    assert world.state["phase"] == "Starting"
    assert "no route" in world.state["message"]


def test_no_step_begins_while_the_stable_predictor_is_not_well() -> None:
    world = World()
    world.plan()
    world.canaries(1)
    world.cluster.drop(POD, "digits-predictor-3")
    world.plan()
    assert world.state["percent"] == 0
    assert "waits for the stable predictor: 3 of 4" in world.state["message"]


def test_removing_the_canary_takes_it_away() -> None:
    world = World()
    world.begin()
    world.change(canary_service(canary=None))
    world.plan()
    assert world.told is None
    assert world.deployments == {"digits", "digits-predictor"}
    assert world.state is None


@pytest.mark.parametrize("part", ["canary", "shadow"])
def test_the_service_does_not_wait_for_the_job_that_trains_its_canary_or_shadow(part: str) -> None:
    of = canary_service(canary=None)
    spec = of.spec.manifest() | {part: {"model": {"trainingJobRef": {"name": "train"}}}}
    world = World(InferenceService.model_validate(of.manifest() | {"spec": spec}))
    found = world.plan()
    assert condition(found)["status"] == "True"
    assert world.deployments == {"digits", "digits-predictor"}
    assert found.status is not None
    words = found.status[part]["message" if part == "canary" else "problem"]
    assert f"{part}.model names the TrainingJob train, which does not exist" in words
    assert found.requeue_after == timedelta(seconds=30)


def test_a_new_router_pod_is_told_too() -> None:
    world = World()
    world.begin()
    world.cluster.put(POD, pod(workloads(world.of)["router"], "digits-9", ready=False))
    world.plan()
    assert world.told is not None
    assert len(world.routers()) == 3


def test_a_canary_of_resources_only_keeps_the_model() -> None:
    world = World(canary_service({"resources": {"limits": {"memory": "1Gi"}}, "steps": STEPS}))
    world.plan()
    (made,) = [item for item in world.cluster.all(DEPLOYMENT) if item["metadata"]["name"] == "digits-canary"]
    container = made["spec"]["template"]["spec"]["containers"][0]
    assert "s3://models/large" in container["command"]
    assert container["resources"]["limits"] == {"memory": "1Gi"}


def test_units_are_dealt_by_the_header_that_the_spec_names() -> None:
    of = canary_service()
    spec = of.spec.manifest() | {"allocation": {"unitHeader": "x-user-id"}}
    world = World(InferenceService.model_validate(of.manifest() | {"spec": spec}))
    world.begin()
    assert world.told is not None
    assert world.told.unit_header == "x-user-id"


def test_percents_without_a_canary_cost_nothing() -> None:
    world = World(canary_service(canary=None))
    world.plan()
    assert not world.last.annotates
    assert world.told is None
