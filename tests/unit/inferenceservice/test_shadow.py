"""A shadow as the plan sees it: its pods, what routers are told, and the summary of what they counted."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from controllers.runtime.objects import DEPLOYMENT, POD, Key, Manifest
from controllers.runtime.plan import Plan
from headrace.api import InferenceService
from headrace.api.latency import bucket
from headrace.api.routing import TRAFFIC, Traffic
from tests.unit.inferenceservice.factory import NOW, WELL, again, condition, plan, pods, service, well

SHADOW: Manifest = {"model": {"storageUri": "s3://models/v2"}, "percent": 20, "replicas": 3}


def shadowed(shadow: Manifest | None = SHADOW) -> InferenceService:
    made = service()
    if shadow is None:
        return made
    return InferenceService.model_validate(made.manifest() | {"spec": made.spec.manifest() | {"shadow": shadow}})


class World:
    """A service that is well, with a shadow, and its time."""

    def __init__(self) -> None:
        self.of = shadowed()
        self.cluster = well(shadowed(None))
        self.now: datetime = NOW
        self.events: list[str] = []

    def plan(self, seconds: float = 0) -> Plan:
        self.now += timedelta(seconds=seconds)
        found = plan(self.of, self.cluster, self.now)
        self.cluster.take(found)
        for item in found.annotates:
            self.cluster.objects[POD, item.key]["metadata"]["annotations"][TRAFFIC] = item.annotations[TRAFFIC]
        self.of = again(self.of, found)
        self.events += [event.reason for event in found.events if event.reason.startswith("Shadow")]
        return found

    def told(self) -> Traffic | None:
        (text,) = {item["metadata"]["annotations"].get(TRAFFIC) for item in pods(self.cluster, "router")}
        return Traffic.model_validate_json(text) if text else None

    def report(self, **counts: Any) -> None:
        """Each of the two routers counts the same."""
        told = self.told()
        assert told is not None
        assert told.shadow is not None
        shadow = {"revision": told.shadow.revision, **counts}
        for item in pods(self.cluster, "router"):
            report = {**WELL, "traffic": {"revision": told.revision, "shadow": shadow}}
            item["metadata"]["annotations"]["headrace.dev/report"] = json.dumps(report)


def summary(found: Plan) -> Any:
    assert found.status is not None
    return found.status.get("shadow")


def test_it_has_pods_of_its_own_and_the_routers_are_told() -> None:
    world = World()
    found = world.plan()
    deployment = world.cluster.get(DEPLOYMENT, Key("demo", "digits-shadow"))
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 3
    assert "s3://models/v2" in deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    told = world.told()
    assert told is not None
    assert told.shadow is not None
    assert (told.shadow.percent, told.shadow.host) == (20, "digits-shadow.demo.svc.cluster.local.")
    assert told.canary is None
    assert condition(found)["status"] == "True", "whether the shadow is ready says nothing about the service"
    assert world.events == ["ShadowStarted"]


def test_the_counts_of_all_routers_are_summed_up_each_half_minute() -> None:
    world = World()
    world.plan()
    counts = {"primaryLatency": {str(bucket(0.01)): 90}, "shadowLatency": {str(bucket(0.02)): 90}}
    world.report(requests=100, differing=9, errors=10, dropped=3, example="y differs", **counts)
    found = summary(world.plan(5))
    assert (found["summary"], found["requests"], found["differing"], found["errors"]) == ("18/200", 200, 18, 20)
    assert (found["dropped"], found["differingRate"], found["example"]) == (6, 10.0, "y differs")
    assert found["shadowP99Milliseconds"] > found["primaryP99Milliseconds"] > 9
    assert world.events == ["ShadowStarted", "ShadowDiffers"]
    world.report(requests=200, differing=9)
    before = world.plan(1)
    assert summary(before)["requests"] == 200
    assert before.requeue_after == timedelta(seconds=29)
    assert summary(world.plan(29))["requests"] == 400


def test_another_model_begins_to_count_anew() -> None:
    world = World()
    world.plan()
    world.report(requests=100, differing=9)
    world.plan(5)
    other = shadowed({**SHADOW, "model": {"storageUri": "s3://models/v3"}})
    world.of = other.model_copy(update={"status": world.of.status})
    found = world.plan(60)
    assert (summary(found)["requests"], summary(found)["summary"]) == (0, "0/0")
    assert summary(world.plan(60))["requests"] == 0, "what was counted of the one before does not count"


def test_without_it_its_pods_go_and_the_routers_are_told() -> None:
    world = World()
    world.plan()
    world.of = shadowed(None).model_copy(update={"status": world.of.status})
    found = world.plan()
    assert world.told() is None
    assert world.cluster.get(DEPLOYMENT, Key("demo", "digits-shadow")) is None
    assert summary(found) is None
    assert world.events == ["ShadowStarted", "ShadowStopped"]
