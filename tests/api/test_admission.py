"""The admission webhook between a real API server and two operator processes: what an apply says, who answers it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ControlPlane, free_ports, service_account_kubeconfig
from tests.api.bad_specs import GOOD_JOB, GOOD_SERVICE, merge_patch
from tests.api.helm import Helm
from tests.api.rest import MERGE, Answer, Rest, path_of
from tests.api.runtime.conftest import wait_until

ROOT = Path(__file__).parents[2]
SYSTEM = "headrace-system"
NAME = "headrace-webhook"
CONFIGURATION = f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{NAME}"
BAD_TENSOR = {
    "spec": {
        "fallback": [
            {"name": "s", "static": {"outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "data": [0.5]}]}}
        ]
    }
}
"""Wrong in a way that no schema sees: one value where the shape means three."""


@dataclass
class Operator:
    """One operator process with the chart's rights."""

    process: subprocess.Popen[bytes]
    webhook_port: int
    metrics_port: int
    log: Path

    def metric(self, name: str) -> float:
        """Sum of a metric over the series whose line begins so; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
                lines = response.read().decode().splitlines()
        except OSError:
            return 0.0
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    @property
    def leads(self) -> bool:
        """Whether it says so."""
        return self.metric("leader_election_master_status") == 1

    def reviews(self, result: str = "") -> float:
        """Reviews answered."""
        pattern = f'result="{result}"' if result else ""
        total = 0.0
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
            for line in response.read().decode().splitlines():
                if line.startswith("headrace_admission_reviews_total{") and pattern in line:
                    total += float(line.rpartition(" ")[2])
        return total


@dataclass
class World:
    """A control plane with the chart, and operators that its API server reaches by loopback."""

    plane: ControlPlane
    admin: Rest
    operators: list[Operator]

    def apply(self, manifest: dict[str, Any], **params: str) -> Answer:
        """Create a resource; the dry run of a server takes the same way."""
        return self.admin("POST", path_of(manifest, collection=True), manifest, **params)

    def ask(self, *operators: Operator) -> None:
        """Have the API server ask these, and them alone; returns when it does."""
        answer = self.admin("GET", CONFIGURATION).body
        (first,) = [item for item in answer["webhooks"] if item["name"] == answer["webhooks"][0]["name"]]
        webhooks = []
        for index, operator in enumerate(operators):
            url = {"url": f"https://127.0.0.1:{operator.webhook_port}/", "caBundle": first["clientConfig"]["caBundle"]}
            webhooks.append(first | {"name": f"review-{index}.headrace.dev", "clientConfig": url})
        changed = self.admin("PUT", CONFIGURATION, answer | {"webhooks": webhooks})
        assert changed.accepted, changed.message
        before = [operator.reviews() for operator in operators]

        def asked() -> bool:
            self.apply(GOOD_JOB, dryRun="All")
            return all(now.reviews() > then for now, then in zip(operators, before, strict=True))

        wait_until(asked, "the API server asks them")


def start(plane: ControlPlane, folder: Path, name: str) -> Operator:
    health, metrics, port = free_ports(3)
    kubeconfig = service_account_kubeconfig(
        plane.kubeconfig, SYSTEM, "headrace-operator", folder / f"{name}.kubeconfig"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")} | {
        "PYTHONPATH": str(ROOT),
        "POD_NAME": name,
        "POD_NAMESPACE": SYSTEM,
        "KUBECONFIG": str(kubeconfig),
        "HEADRACE_HOST": "127.0.0.1",
        "HEADRACE_HEALTH_PORT": str(health),
        "HEADRACE_METRICS_PORT": str(metrics),
        "HEADRACE_WEBHOOK_PORT": str(port),
        "HEADRACE_WEBHOOK_SECRET": NAME,
        "HEADRACE_WEBHOOK_CONFIGURATION": NAME,
        "HEADRACE_WEBHOOK_NAMES": f"{NAME}.{SYSTEM}.svc,127.0.0.1",
    }
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "operator")], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    return Operator(process, port, metrics, log)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("admission")
    plane = ControlPlane(folder / "plane", audit=True)
    with ExitStack() as stack:
        stack.callback(plane.stop)
        plane.start()
        Helm(plane.kubeconfig).install()
        operators = []
        for name in ("one", "two"):
            operators.append(start(plane, folder, name))
            stack.callback(operators[-1].process.wait)
            stack.callback(operators[-1].process.kill)
        world = World(plane, Rest(plane.kubeconfig), operators)
        expiry = "headrace_webhook_certificate_expiry_timestamp_seconds "
        wait_until(lambda: all(item.metric(expiry) > 0 for item in operators), "both serve a certificate", 90)
        wait_until(lambda: any(item.leads for item in operators), "one leads", 60)
        yield world


def leader_and_standby(world: World) -> tuple[Operator, Operator]:
    one, two = sorted(world.operators, key=lambda item: not item.leads)
    return one, two


def test_the_operator_itself_tells_the_api_server_whom_to_trust(world: World) -> None:
    (webhook,) = world.admin("GET", CONFIGURATION).body["webhooks"]
    secret = world.admin("GET", f"/api/v1/namespaces/{SYSTEM}/secrets/{NAME}").body
    assert webhook["clientConfig"]["caBundle"] == secret["data"]["ca.crt"]
    assert webhook["clientConfig"]["service"]["name"] == NAME


@pytest.mark.parametrize("who", [0, 1], ids=["leader", "standby"])
def test_leader_and_standby_answer_alike(world: World, who: int) -> None:
    asked = leader_and_standby(world)[who]
    world.ask(asked)
    before = asked.reviews()

    refused = world.apply(merge_patch(GOOD_SERVICE, BAD_TENSOR), dryRun="All")
    assert refused.status == 422
    assert refused.message.startswith('admission webhook "review-0.headrace.dev" denied the request: ')
    assert "spec.fallback[0].static.outputs[0]" in refused.message
    assert "has 1 values and shape [3] means 3: change data or shape" in refused.message

    script = {"spec": {"classifier": None, "script": {"configMap": {"name": "code", "key": "train.py"}}}}
    warned = world.apply(merge_patch(GOOD_JOB, script), dryRun="All")
    assert warned.accepted, warned.message
    (warning,) = warned.warnings
    assert "ConfigMap 'code' does not exist in namespace default" in warning

    gpu = world.apply(merge_patch(GOOD_JOB, {"spec": {"gpu": {"count": 1}}}), dryRun="All")
    assert gpu.accepted, gpu.message
    assert "no node of this cluster offers nvidia.com/gpu" in gpu.warnings[0]

    taken = {"metadata": {"name": f"{GOOD_JOB['metadata']['name']}-workers", "namespace": "default"}}
    services = "/api/v1/namespaces/default/services"
    assert world.admin("POST", services, taken | {"spec": {"ports": [{"port": 80}]}}).accepted
    try:
        conflict = world.apply(GOOD_JOB, dryRun="All")
        assert conflict.status == 422
        assert "exists already and was not made by Headrace" in conflict.message
    finally:
        world.admin("DELETE", f"{services}/{taken['metadata']['name']}")

    good = world.apply(GOOD_JOB, dryRun="All")
    assert good.accepted, good.message
    assert not good.warnings
    assert asked.reviews() - before == 5
    assert asked.reviews("failed") == 0
    assert "failed permanently" not in asked.log.read_text(), "a refusal is no error of the operator"


def test_what_is_the_same_is_not_asked_about(world: World) -> None:
    asked, _ = leader_and_standby(world)
    world.ask(asked)
    assert world.apply(GOOD_SERVICE).accepted
    before = asked.reviews()
    path = path_of(GOOD_SERVICE)
    assert world.admin("PATCH", path, {"metadata": {"labels": {"a": "b"}}}, content_type=MERGE).accepted
    wait_until(lambda: "url" in world.admin("GET", path).body["status"], "the status", 60)
    assert asked.reviews() == before
    assert world.admin("PATCH", path, BAD_TENSOR, content_type=MERGE).status == 422
    assert asked.reviews() == before + 1
    assert world.admin("DELETE", path).accepted


def test_an_idle_webhook_writes_nothing(world: World) -> None:
    assert world.plane.audit_log is not None
    text = world.plane.audit_log.read_text()
    mine = [
        line for line in text.splitlines() if '"name":"headrace-webhook"' in line and '"userAgent":"headrace' in line
    ]
    writes = [line for line in mine if '"verb":"patch"' in line and '"stage":"ResponseComplete"' in line]
    # The Secret and the configuration, once each, whoever looked at them how often.
    assert len(writes) == 2, writes


def test_applies_go_on_when_an_operator_is_killed(world: World) -> None:
    leader, standby = leader_and_standby(world)
    world.ask(leader, standby)
    bad = merge_patch(GOOD_SERVICE, BAD_TENSOR)
    leader.process.send_signal(signal.SIGKILL)
    leader.process.wait()
    assert world.apply(GOOD_JOB, dryRun="All").accepted
    refused = world.apply(bad, dryRun="All")
    assert refused.status == 422, "the one that is left still answers"
    # With none left, what the schema takes is taken, and the reconcile will say what is wrong.
    wait_until(lambda: standby.leads, "the other leads", 60)
    standby.process.send_signal(signal.SIGTERM)
    assert standby.process.wait(45) == 0
    assert world.apply(GOOD_JOB, dryRun="All").accepted
    assert world.apply(bad, dryRun="All").accepted
