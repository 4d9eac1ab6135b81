"""Jobs in a namespace of a control plane with simulated nodes, and the operator at work there."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.controlplane import ControlPlane, free_ports
from cluster.kwok import simulated_nodes
from cluster.tools import tool
from tests.api.rest import MERGE, Rest

ROOT = Path(__file__).parents[2]
CPUS = 64
"""Of a simulated node; there are three, one in each zone."""


class Team:
    """One namespace of a control plane with nodes."""

    def __init__(self, rest: Rest, namespace: str, log: Path) -> None:
        self.rest, self.namespace, self.log = rest, namespace, log
        self._jobs = f"/apis/headrace.dev/v1alpha1/namespaces/{namespace}/trainingjobs"

    def create(
        self, name: str, workers: int, cpu: int, *, labels: Mapping[str, str] | None = None, **spec: Any
    ) -> None:
        body = {
            "apiVersion": "headrace.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name, "labels": dict(labels or {})},
            "spec": {
                "numWorkers": workers,
                "classifier": {"dataset": {"builtin": "Digits"}},
                "resources": {"requests": {"cpu": str(cpu)}},
                **spec,
            },
        }
        answer = self.rest("POST", self._jobs, body)
        assert answer.accepted, answer

    def patch(self, name: str, spec: Any) -> None:
        assert self.rest("PATCH", f"{self._jobs}/{name}", {"spec": spec}, content_type=MERGE).accepted

    def delete(self, name: str) -> None:
        assert self.rest("DELETE", f"{self._jobs}/{name}").accepted

    def exists(self, name: str) -> bool:
        return self.rest("GET", f"{self._jobs}/{name}").status == 200

    def condition(self, name: str, type_: str = "Ready") -> dict[str, Any]:
        found = self.rest("GET", f"{self._jobs}/{name}").body.get("status", {}).get("conditions", [])
        return next((item for item in found if item["type"] == type_), {"status": "", "reason": "", "message": ""})

    def runs(self, name: str) -> bool:
        return bool(self.condition(name)["status"] == "True")

    def pods(self, name: str) -> list[dict[str, Any]]:
        selector = f"app.kubernetes.io/instance={name}"
        return list(self.rest("GET", f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=selector).body["items"])

    def bound(self, name: str) -> int:
        return sum(bool(pod["spec"].get("nodeName")) for pod in self.pods(name))

    def until(self, what: str, look: Callable[[], Any], seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s\n{self.log.read_text()[-3000:]}"
            time.sleep(0.2)
        return found


@contextmanager
def simulated(folder: Path) -> Iterator[ControlPlane]:
    """A control plane with Headrace's kinds and three nodes."""
    plane = ControlPlane(folder / "plane")
    plane.start()
    try:
        with simulated_nodes(plane, 3):
            kubectl = [str(tool("kubectl")), "--kubeconfig", str(plane.kubeconfig)]
            for command in (
                ["apply", "--server-side", "-f", str(ROOT / "crds")],
                ["create", "namespace", "headrace-system"],
                ["wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds")],
            ):
                subprocess.run([*kubectl, *command], check=True, capture_output=True)
            yield plane
    finally:
        plane.stop()


@contextmanager
def operated(plane: ControlPlane, namespace: str, gang_scheduling: str) -> Iterator[Team]:
    """A namespace, and an operator that runs while the context lasts."""
    rest = Rest(plane.kubeconfig)
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    assert rest("POST", "/api/v1/namespaces", body).accepted
    health, metrics = free_ports(2)
    log = plane.folder / f"{namespace}.log"
    command = [sys.executable, str(ROOT / "operator"), "--kubeconfig", str(plane.kubeconfig), "--host", "127.0.0.1"]
    command += ["--namespace", "headrace-system", "--health-port", str(health), "--metrics-port", str(metrics)]
    command += ["--gang-scheduling", gang_scheduling]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=output, stderr=output)
        try:
            yield Team(rest, namespace, log)
        finally:
            process.terminate()
            process.wait(30)
            jobs = f"/apis/headrace.dev/v1alpha1/namespaces/{namespace}/trainingjobs"
            for job in rest("GET", jobs).body["items"]:
                rest("DELETE", f"{jobs}/{job['metadata']['name']}")
            rest("DELETE", f"/api/v1/namespaces/{namespace}/pods", {"gracePeriodSeconds": 0})
