"""The plan of a FeatureSet: when a refresh begins, how it goes on after each kind of accident, and what status says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controllers.featureset import builders
from controllers.featureset.controller import FeatureSetController
from controllers.featureset.observed import CHILDREN
from controllers.runtime.admission import Known
from controllers.runtime.errors import TerminalError
from controllers.runtime.objects import BATCH_JOB, CONFIG_MAP, DEPLOYMENT, POD, REPORT, Key, Manifest, ObjectType
from controllers.runtime.plan import Plan
from controllers.runtime.settings import Settings
from controllers.runtime.workload import pod_template
from headrace.api import FeatureSet

START = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
SETTINGS = Settings(online_store_uri="redis://:secret@store:6379/0")
CONTROLLER = FeatureSetController(SETTINGS)


class World:
    """A FeatureSet and its cluster: each look applies what the plan says."""

    def __init__(self, **spec: Any) -> None:
        self.spec: dict[str, Any] = {
            "entities": [{"name": "driver"}],
            "source": {"uri": "s3://team/drivers", "timestampColumn": "ts"},
            "features": [{"name": "trips", "type": "Int64"}],
        } | spec
        self.now = START
        self.generation = 1
        self.annotations: dict[str, str] = {}
        self.status: dict[str, Any] | None = None
        self.objects: dict[tuple[ObjectType, str], Manifest] = {}
        self.plan = Plan()

    @property
    def resource(self) -> FeatureSet:
        return FeatureSet.model_validate(
            {
                "metadata": {
                    "name": "drivers",
                    "namespace": "team",
                    "uid": "uid-1",
                    "generation": self.generation,
                    "annotations": self.annotations,
                },
                "spec": self.spec,
                "status": self.status,
            }
        )

    # controllers.runtime.controller.Caches
    def owned(self, type_: ObjectType, namespace: str, owner_uid: str) -> Sequence[Manifest]:
        return [item for (kind, _), item in sorted(self.objects.items(), key=lambda pair: pair[0][1]) if kind == type_]

    def get(self, type_: ObjectType, key: Key) -> Manifest | None:
        return self.objects.get((type_, key.name))

    def all(self, type_: ObjectType) -> Sequence[Manifest]:
        return ()

    def patience(self) -> timedelta:
        return timedelta(seconds=3)

    def look(self, after: float = 0, *, write_status: bool = True) -> dict[str, Any]:
        """One reconcile, some seconds later."""
        self.now += timedelta(seconds=after)
        resource = self.resource
        self.plan = CONTROLLER.plan(resource, CONTROLLER.gather(resource, self), self.now)
        for delete in self.plan.deletes:
            self.objects.pop((delete.type, delete.key.name))
        for apply in self.plan.applies:
            key = (apply.type, apply.manifest["metadata"]["name"])
            if apply.type in (*CHILDREN, BATCH_JOB):
                merged = {**self.objects.get(key, {}), **json.loads(json.dumps(apply.manifest))}
                merged["metadata"]["uid"] = f"uid of {key[1]}"
                self.objects[key] = merged
        assert self.plan.status is not None
        if write_status:
            self.status = json.loads(json.dumps(self.plan.status))
        return self.plan.status

    @property
    def jobs(self) -> list[str]:
        return [name for type_, name in self.objects if type_ == BATCH_JOB]

    @property
    def triggers(self) -> str:
        return str(self.plan.status and self.plan.status["refresh"]["trigger"])

    def serve(self, *, ready: bool = True, **report: Any) -> None:
        """Two servers of the present spec, which report this."""
        resource = self.resource
        config = builders.config_map(resource)["metadata"]["name"]
        template = pod_template(builders.server(resource, SETTINGS, config))
        for number in range(2):
            self.objects[POD, f"server-{number}"] = {
                "metadata": {
                    **template["metadata"],
                    "name": f"server-{number}",
                    "namespace": "team",
                    "annotations": {**template["metadata"]["annotations"], REPORT: json.dumps(report)},
                },
                "status": {
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": str(ready)}],
                },
            }

    def refresher(self, number: int, **said: Any) -> None:
        """The pod of a refresh."""
        job = self.objects[BATCH_JOB, f"drivers-refresh-{number}"]
        labels = {
            **job["spec"]["template"]["metadata"]["labels"],
            "batch.kubernetes.io/job-name": f"drivers-refresh-{number}",
        }
        self.objects[POD, f"refresher-{number}"] = {
            "metadata": {
                "name": f"refresher-{number}",
                "namespace": "team",
                "labels": labels,
                "annotations": {REPORT: json.dumps(said.pop("report", {}))},
            },
            "status": {"phase": "Running"} | said,
        }

    def succeed(self, number: int, version: str = "v1.0", source: str = "s1") -> None:
        """A refresh has ended well."""
        online = {
            "version": version,
            "hash": self.resource.spec.transform().hash,
            "sourceVersion": source,
            "entities": 9,
            "refreshedAt": "2026-11-25T12:00:00Z",
        }
        report = {"phase": "Succeeded", "mode": "Full", "done": 9, "total": 9, "online": online}
        self.refresher(number, report=report, phase="Succeeded")
        self._end(number, "Complete")

    def fail(self, number: int, words: str = "s3://team/drivers: there is nothing here") -> None:
        """A refresh has failed."""
        ended = {"state": {"terminated": {"exitCode": 78, "message": words}}, "name": "refresh"}
        self.refresher(number, phase="Failed", containerStatuses=[ended])
        self._end(number, "Failed")

    def _end(self, number: int, condition: str) -> None:
        job = self.objects[BATCH_JOB, f"drivers-refresh-{number}"]
        job["status"] = {"conditions": [{"type": condition, "status": "True", "reason": "", "message": ""}]}

    def settle(self) -> dict[str, Any]:
        """Loaded and served."""
        self.look()
        self.succeed(1)
        self.serve(version="v1.0", sourceVersion="s1")
        return self.look(5)

    def events(self) -> list[str]:
        return [event.reason for event in self.plan.events]


def condition(status: dict[str, Any], type_: str) -> tuple[str, str]:
    found = next(item for item in status["conditions"] if item["type"] == type_)
    return found["status"], found["reason"]


def test_the_first_look_makes_servers_and_a_refresh() -> None:
    world = World()
    status = world.look()
    assert world.jobs == ["drivers-refresh-1"]
    assert (DEPLOYMENT, "drivers-features") in world.objects
    assert (status["refresh"]["number"], status["refresh"]["trigger"]) == (1, "Created")
    assert condition(status, "Ready") == ("False", "Loading")
    assert world.events() == ["RefreshStarted"]
    # The same again: nothing new begins.
    world.look(1)
    assert world.jobs == ["drivers-refresh-1"]
    assert world.events() == []


def test_progress_is_shown_and_the_end_makes_it_ready() -> None:
    world = World()
    world.look()
    world.refresher(1, report={"phase": "Writing", "mode": "Full", "done": 250, "total": 1000})
    status = world.look(1)
    assert (status["refresh"]["summary"], status["refresh"]["done"]) == ("Writing 25%", 250)
    world.succeed(1)
    world.serve(version="v1.0", sourceVersion="s1")
    status = world.look(1)
    assert condition(status, "Ready") == ("True", "Serving")
    assert condition(status, "Fresh") == ("True", "Refreshed")
    assert (status["online"]["version"], status["online"]["entities"]) == ("v1.0", 9)
    assert status["refresh"]["summary"] == "Succeeded (Full)"
    assert world.events() == ["RefreshSucceeded", "Serving"]


def test_a_status_that_was_not_written_makes_no_second_refresh() -> None:
    world = World()
    world.look(write_status=False)
    world.look(1)
    assert world.jobs == ["drivers-refresh-1"]


def test_a_job_that_somebody_deletes_while_it_runs_is_made_again() -> None:
    world = World()
    world.look()
    del world.objects[BATCH_JOB, "drivers-refresh-1"]
    world.look(1)
    assert world.jobs == ["drivers-refresh-1"]


@pytest.mark.parametrize(
    ("change", "trigger"),
    [
        (lambda world: world.annotations.update({"headrace.dev/refresh": "42"}), "Requested"),
        (lambda world: world.serve(version="v1.0", sourceVersion="s2"), "SourceChanged"),
        (lambda world: world.serve(empty=True, problem="no rows"), "StoreLost"),
        (
            lambda world: world.spec.update(
                features=[
                    {"name": "trips", "type": "Int64"},
                    {"name": "twice", "type": "Int64", "expression": "trips * 2"},
                ]
            ),
            "TransformChanged",
        ),
    ],
)
def test_what_sets_a_refresh_off(change: Any, trigger: str) -> None:
    world = World()
    world.settle()
    world.look(60)
    assert world.jobs == ["drivers-refresh-1"]
    change(world)
    world.look(60)
    assert (world.jobs, world.triggers) == (["drivers-refresh-2"], trigger)
    world.succeed(2, "v2.0", "s2")
    world.look(5)
    # It is done once.
    world.serve(version="v2.0", sourceVersion="s2")
    world.look(600)
    assert world.jobs == ["drivers-refresh-2"]


def test_a_store_that_does_not_answer_is_waited_for() -> None:
    world = World()
    world.settle()
    world.serve(problem="the online store at store:6379 cannot be used: Connection refused", sourceVersion="s1")
    status = world.look(60)
    assert world.jobs == ["drivers-refresh-1"]
    assert condition(status, "Ready") == ("False", "OnlineStoreUnreachable")
    assert world.events() == ["OnlineStoreUnreachable"]


def test_the_schedule_is_in_its_time_zone_and_is_looked_at_when_it_is_due() -> None:
    # Berlin is an hour ahead of UTC in November (tz database).
    world = World(refresh={"schedule": "30 13 * * *", "timeZone": "Europe/Berlin"})
    status = world.settle()
    assert status["nextRefresh"] == "2026-11-25T12:30:00Z"
    assert world.plan.requeue_after == datetime(2026, 11, 25, 12, 30, tzinfo=UTC) - world.now
    world.look(29 * 60)
    assert world.jobs == ["drivers-refresh-1"]
    status = world.look(60)
    assert (world.jobs, world.triggers) == (["drivers-refresh-2"], "Schedule")
    assert status["nextRefresh"] == "2026-11-26T12:30:00Z"


@pytest.mark.parametrize(
    ("refresh", "words"),
    [
        ({"schedule": "every day"}, "spec.refresh.schedule: 'every day' is no cron schedule"),
        ({"schedule": "0 3 * * *", "timeZone": "Mars/Olympus"}, "spec.refresh.timeZone: 'Mars/Olympus' is no IANA"),
    ],
)
def test_a_schedule_that_is_none_is_said(refresh: Any, words: str) -> None:
    with pytest.raises(TerminalError, match=words):
        World(refresh=refresh).look()


def test_a_failed_refresh_is_tried_again_after_growing_pauses_and_at_once_when_the_source_changes() -> None:
    world = World()
    world.look()
    world.fail(1)
    status = world.look(1)
    assert condition(status, "Ready") == ("False", "RefreshFailed")
    assert "there is nothing here" in status["refresh"]["message"]
    assert world.plan.requeue_after == timedelta(seconds=30)
    assert world.events() == ["RefreshFailed"]
    world.look(31)
    assert (world.jobs, world.triggers) == (["drivers-refresh-2"], "Retry")
    world.fail(2)
    world.look(1)
    assert world.plan.requeue_after == timedelta(seconds=60)
    world.serve(ready=False, sourceVersion="s1", empty=True, problem="no rows")
    world.look(1)
    assert (world.jobs, world.triggers) == (["drivers-refresh-3"], "TransformChanged")
    world.succeed(3)
    world.serve(version="v1.0", sourceVersion="s1")
    status = world.look(1)
    assert (status["refresh"]["failures"], condition(status, "Ready")) == (0, ("True", "Serving"))


def test_while_a_later_refresh_fails_the_rows_before_are_served() -> None:
    world = World()
    world.settle()
    world.annotations["headrace.dev/refresh"] = "now"
    world.look(60)
    world.fail(2, "it broke")
    status = world.look(1)
    assert condition(status, "Ready") == ("True", "Serving")
    assert condition(status, "Fresh") == ("False", "RefreshFailed")


def test_servers_of_the_transform_before_keep_their_rows_and_configuration() -> None:
    world = World()
    before = world.settle()
    old = {name for type_, name in world.objects if type_ == CONFIG_MAP}
    world.spec["features"] = [
        {"name": "trips", "type": "Int64"},
        {"name": "t", "type": "Int64", "expression": "trips + 1"},
    ]
    world.generation += 1
    status = world.look(60)
    assert status["hash"] != before["hash"]
    job = world.objects[BATCH_JOB, "drivers-refresh-2"]
    assert before["hash"] in job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert old < {name for type_, name in world.objects if type_ == CONFIG_MAP}
    assert condition(status, "Ready") == ("False", "Loading")
    world.succeed(2, "v2.0")
    world.serve(version="v2.0", sourceVersion="s1")
    world.look(5)
    world.look(5)
    assert len({name for type_, name in world.objects if type_ == CONFIG_MAP}) == 1


def test_replicas_and_places_start_no_server_anew() -> None:
    def config(**spec: Any) -> str:
        return str(builders.config_map(World(**spec).resource)["metadata"]["name"])

    assert config(server={"replicas": 5, "nodeSelector": {"a": "b"}}, refresh={"schedule": "0 * * * *"}) == config()
    assert config(ttl="1h") != config()


def test_without_an_online_store_it_says_what_to_do() -> None:
    with pytest.raises(TerminalError, match=r"spec\.onlineStore\.secretRef"):
        FeatureSetController(Settings()).plan(World().resource, CONTROLLER.gather(World().resource, World()), START)


def test_a_refresh_cannot_run_twice_at_once_and_gives_up_on_a_wrong_configuration() -> None:
    world = World()
    world.look()
    spec = world.objects[BATCH_JOB, "drivers-refresh-1"]["spec"]
    assert (spec["parallelism"], spec["podReplacementPolicy"]) == (1, "Failed")
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [78]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_a_schedule_that_is_none_is_refused_at_apply() -> None:
    refused = CONTROLLER.review(World(refresh={"schedule": "61 * * * *"}).resource, Known(), created=True)
    assert "spec.refresh.schedule: '61 * * * *' is no cron schedule" in refused.refusals[0]
    assert CONTROLLER.review(World(refresh={"schedule": "0 3 * * 1-5"}).resource, Known(), created=True).refusals == []


def test_a_secret_that_is_missing_is_warned_of() -> None:
    resource = World(onlineStore={"secretRef": {"name": "redis"}}).resource
    (reference,) = CONTROLLER.references(resource, created=False)
    verdict = CONTROLLER.review(resource, Known({reference: None}), created=False)
    assert "spec.onlineStore.secretRef" in verdict.warnings[0]
    assert "HEADRACE_ONLINE_STORE_URI" in verdict.warnings[0]
