"""A TrainingJob on a real API server: the controller at work, scheduler and kubelet played by hand."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from controllers.runtime.client import ApiClient, load_connection
from controllers.runtime.manager import Manager, ManagerOptions
from controllers.runtime.metrics import Metrics
from controllers.runtime.objects import REPORT, Manifest
from controllers.runtime.settings import Settings
from controllers.trainingjob.controller import TrainingJobController
from headrace.api.trainingjob import TrainingJob
from tests.api.rest import MERGE, Rest

_numbers = itertools.count(1)
STRATEGIC = "application/strategic-merge-patch+json"


@dataclass(frozen=True)
class Stage:
    """One namespace, and the hands of scheduler and kubelet in it."""

    rest: Rest
    namespace: str

    def create(self, name: str, **spec: Any) -> None:
        body = {
            "apiVersion": "headrace.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name},
            "spec": {"numWorkers": 3, "classifier": {"dataset": {"builtin": "Digits"}}, **spec},
        }
        answer = self.rest("POST", f"/apis/headrace.dev/v1alpha1/namespaces/{self.namespace}/trainingjobs", body)
        assert answer.accepted, answer

    def job(self, name: str) -> Manifest:
        return self.rest("GET", f"/apis/headrace.dev/v1alpha1/namespaces/{self.namespace}/trainingjobs/{name}").body

    def status(self, name: str) -> Manifest:
        status: Manifest = self.job(name).get("status", {})
        return status

    def condition(self, name: str, type_: str) -> Manifest:
        found = (item for item in self.status(name).get("conditions", []) if item["type"] == type_)
        return next(found, {"status": "", "reason": "", "message": ""})

    def pod(self, name: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{name}"

    def pods(self) -> dict[str, Manifest]:
        items = self.rest("GET", f"/api/v1/namespaces/{self.namespace}/pods").body["items"]
        return {item["metadata"]["name"]: item for item in items}

    def attempts(self) -> list[str]:
        return sorted(pod["metadata"]["labels"]["headrace.dev/attempt"] for pod in self.pods().values())

    def patch(self, pod: str, body: Manifest, *, part: str = "") -> None:
        path = f"{self.pod(pod)}{part}"
        answer = self.rest("PATCH", path, body, content_type=STRATEGIC if part else MERGE)
        assert answer.accepted, answer

    def run(self, pod: str, node: str = "node-a") -> None:
        """Schedule a pod and start its container."""
        binding = {"metadata": {"name": pod}, "target": {"kind": "Node", "name": node}}
        path = f"{self.pod(pod)}/binding"
        assert self.rest("POST", path, {"apiVersion": "v1", "kind": "Binding", **binding}).accepted
        state = {"running": {"startedAt": now()}}
        self._status(pod, "Running", "True", state)

    def end(self, pod: str, code: int, message: str = "") -> None:
        """The container's process ends."""
        ended = {"exitCode": code, "finishedAt": now(), "reason": "Error" if code else "Completed", "message": message}
        self._status(pod, "Failed" if code else "Succeeded", "False", {"terminated": ended})

    def _status(self, pod: str, phase: str, ready: str, state: Manifest) -> None:
        container = {"name": "worker", "image": "x", "imageID": "x", "ready": ready == "True", "restartCount": 0}
        conditions = [{"type": "Ready", "status": ready}, {"type": "PodScheduled", "status": "True"}]
        status = {"phase": phase, "conditions": conditions, "containerStatuses": [container | {"state": state}]}
        self.patch(pod, {"status": status}, part="/status")

    def gone(self) -> None:
        """The kubelets confirm what is deleted."""
        for name, pod in self.pods().items():
            if pod["metadata"].get("deletionTimestamp"):
                self.rest("DELETE", self.pod(name), {"gracePeriodSeconds": 0})

    def report(self, pod: str, **content: Any) -> None:
        self.patch(pod, {"metadata": {"annotations": {REPORT: json.dumps(content)}}})

    def events(self) -> list[str]:
        items = self.rest("GET", f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events").body["items"]
        return [item["reason"] for item in items]

    def notes(self) -> list[str]:
        items = self.rest("GET", f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events").body["items"]
        return [item["note"] for item in items]


@pytest.fixture
def stage(control_plane: Path) -> Stage:
    rest = Rest(control_plane)
    namespace = f"training-{next(_numbers)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    assert rest("POST", "/api/v1/namespaces", {"metadata": {"name": namespace, "labels": labels}}).accepted
    for zone in "abc":
        node = {"metadata": {"name": f"node-{zone}", "labels": {"topology.kubernetes.io/zone": zone}}}
        rest("POST", "/api/v1/nodes", node)
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        rest("PATCH", f"/api/v1/nodes/node-{zone}/status", ready, content_type=STRATEGIC)
    return Stage(rest, namespace)


@asynccontextmanager
async def operator(kubeconfig: Path, settings: Settings | None = None) -> AsyncIterator[Manager]:
    """The controller at work, without the rest of the operator program."""
    client = ApiClient(await load_connection(kubeconfig))
    controller = TrainingJobController(settings or Settings())
    manager = Manager(client, [controller], Metrics(CollectorRegistry()), ManagerOptions(drain=2.0))
    tasks = [asyncio.create_task(manager.run()), *(asyncio.create_task(cache.run()) for cache in manager.watch())]
    try:
        yield manager
    finally:
        await manager.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()


async def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.05)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def started(stage: Stage, name: str, attempt: int) -> list[str]:
    """Wait for all pods of an attempt, and run them, one per zone."""
    workers = [f"{name}-worker-{index}" for index in range(3)]

    def made() -> bool:
        stage.gone()
        return stage.attempts() == [str(attempt)] * 3

    await until(made, f"three pods of attempt {attempt}")
    for worker, zone in zip(workers, "abc", strict=True):
        stage.run(worker, f"node-{zone}")
    await until(lambda: stage.condition(name, "Running")["status"] == "True", "Running")
    return workers


async def test_from_creation_over_a_failure_to_the_model(control_plane: Path, stage: Stage) -> None:
    async with operator(control_plane) as manager:
        stage.create("digits")
        workers = await started(stage, "digits", 1)
        status = stage.status("digits")
        assert [place["zone"] for place in status["placement"]] == ["a", "b", "c"]
        assert status["workers"]["summary"] == "3/3"
        stage.report(workers[0], attempt=1, step=40, steps=100, percent=40, loss="0.5", backend="gloo")
        await until(lambda: stage.status("digits")["progress"]["step"] == 40, "progress")

        stage.end(workers[1], 1, "ValueError: boom")
        for worker in (workers[0], workers[2]):
            stage.end(worker, 1, "connection reset by peer")
        await until(lambda: stage.status("digits")["restarts"] == 1, "the restart is on record")
        assert stage.status("digits")["progress"]["step"] == 40

        await started(stage, "digits", 2)
        stage.report(workers[0], attempt=2, step=100, steps=100, percent=100, resumedFromStep=40,
                     metrics={"accuracy": "0.97"}, modelUri="s3://headrace/x/model.onnx")  # fmt: skip
        for worker in workers:
            stage.end(worker, 0)
        await until(lambda: stage.condition("digits", "Succeeded")["status"] == "True", "Succeeded")
        status = stage.status("digits")
        assert (status["attempt"], status["restarts"]) == (2, 1)
        assert status["modelUri"] == "s3://headrace/x/model.onnx"
        assert status["progress"]["resumedFromStep"] == 40
        expected = {"Started", "Running", "WorkerFailed", "Restarting", "Resumed", "Succeeded"}
        await until(lambda: expected <= set(stage.events()), "Events")
        assert any("boom" in note for note in stage.notes())

        version = stage.job("digits")["metadata"]["resourceVersion"]
        for key in manager.store(TrainingJob):
            manager.queue(TrainingJob).add(key)
        await until(lambda: manager.queue(TrainingJob).idle, "idle")
        assert stage.job("digits")["metadata"]["resourceVersion"] == version


async def test_a_successor_finds_a_deleted_worker_and_counts_nothing(control_plane: Path, stage: Stage) -> None:
    async with operator(control_plane):
        stage.create("digits", restartPolicy={"maxRestarts": 0})
        workers = await started(stage, "digits", 1)
    stage.rest("DELETE", stage.pod(workers[2]), {"gracePeriodSeconds": 0})
    stage.end(workers[0], 1, "connection reset by peer")
    async with operator(control_plane):
        await until(lambda: stage.status("digits")["attempt"] == 2, "the next attempt")
        assert stage.condition("digits", "Restarting")["reason"] == "WorkerDeleted"
        await started(stage, "digits", 2)
        assert stage.status("digits")["restarts"] == 0


async def test_the_limit_ends_the_job_and_stops_its_workers(control_plane: Path, stage: Stage) -> None:
    async with operator(control_plane):
        stage.create("digits", restartPolicy={"maxRestarts": 0})
        workers = await started(stage, "digits", 1)
        stage.end(workers[1], 1, "ValueError: boom")
        await until(lambda: stage.condition("digits", "Failed")["status"] == "True", "Failed")
        assert stage.condition("digits", "Failed")["reason"] == "RestartLimitReached"
        await until(
            lambda: (
                {n for n, p in stage.pods().items() if "deletionTimestamp" in p["metadata"]} == {workers[0], workers[2]}
            ),
            "the others are stopped, the failed one keeps its log",
        )


async def test_a_lost_node_is_not_waited_for(control_plane: Path, stage: Stage) -> None:
    def node(status: str) -> None:
        body = {"status": {"conditions": [{"type": "Ready", "status": status, "reason": "NodeStatusUnknown"}]}}
        assert stage.rest("PATCH", "/api/v1/nodes/node-c/status", body, content_type=STRATEGIC).accepted

    async with operator(control_plane):
        stage.create("digits")
        workers = await started(stage, "digits", 1)
        lost_pod = stage.pods()[workers[2]]
        stay = {name: stage.pods()[name]["metadata"]["uid"] for name in workers[:2]}
        try:
            # What the node lifecycle controller does 40 s after a node's last word; the kubelet there confirms nothing.
            node("Unknown")
            lost = {"conditions": [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}]}
            stage.patch(workers[2], {"status": lost}, part="/status")

            await until(
                lambda: stage.pods().get(workers[2], lost_pod)["metadata"]["uid"] != lost_pod["metadata"]["uid"],
                "it is replaced, with no word from the kubelet of the lost node",
            )
        finally:
            node("True")
        assert {name: stage.pods()[name]["metadata"]["uid"] for name in workers[:2]} == stay
        stage.run(workers[2], "node-c")
        await until(lambda: stage.condition("digits", "Running")["status"] == "True", "Running")
        assert stage.status("digits")["attempt"] == 2
        assert stage.status("digits")["restarts"] == 0
        assert any("node-c is not ready" in note for note in stage.notes())


@pytest.mark.parametrize(
    "spec",
    [
        {"gpu": {"count": 2, "product": "NVIDIA-L4"}, "topology": {"zoneSpread": "Pack"}},
        {
            "classifier": None,
            "script": {"git": {"repo": "https://git.example/t.git", "path": "t.py", "secretRef": {"name": "git"}}},
            "args": ["--fast"],
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "imagePullSecrets": [{"name": "registry"}],
            "resources": {"requests": {"cpu": "0.5"}, "limits": {"memory": "1Gi"}},
        },
        {
            "classifier": None,
            "script": {"configMap": {"name": "code", "key": "train.py"}},
            "storage": {"uri": "s3://mine/run", "secretRef": {"name": "keys"}},
            "priorityClassName": "system-cluster-critical",
        },
    ],
)
async def test_pods_are_accepted_under_the_restricted_standard(
    control_plane: Path, stage: Stage, spec: dict[str, Any]
) -> None:
    async with operator(control_plane):
        stage.create("digits", **spec)
        await until(
            lambda: (
                len(stage.pods()) == 3
                or stage.condition("digits", "Ready")["reason"] not in ("", "Pending", "Starting")
            ),
            "pods or a refusal",
        )
        assert len(stage.pods()) == 3, stage.condition("digits", "Ready")
        assert stage.condition("digits", "Ready")["reason"] in ("Pending", "Starting")
