"""How fast a big gang starts, and what a long queue costs: `python -m benchmarks.gang_start`.

A real kube-apiserver, etcd, kube-scheduler and kube-controller-manager; nodes and kubelets are simulated by kwok; the
operator is the released program in a process of its own. Everything shares this machine.

- One job of so many workers is created; measured is the time from its creation until all its pods have a node, once by
  the cluster's own gang scheduling and once by the operator's queue.
- So many jobs of one worker stand in the operator's queue for nodes that hold 90 of them at once. A worker that runs is
  said to have succeeded, so the next ones get its place. Measured are the time until all have succeeded, how many jobs
  were admitted more than a second after one that stood behind them, and the operator's peak memory.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.operator_scale.__main__ import ROOT, wait_until_leading
from benchmarks.operator_scale.accounting import peak_mib
from cluster.controlplane import ControlPlane, free_ports
from cluster.kwok import simulated_nodes
from cluster.process import output
from cluster.tools import tool

NAMESPACE = "team"
JOBS = f"/apis/headrace.dev/v1alpha1/namespaces/{NAMESPACE}/trainingjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
DEADLINE = 600.0


class Api:
    """JSON requests as the administrator."""

    def __init__(self, plane: ControlPlane) -> None:
        config = json.loads(plane.kubeconfig.read_text())
        self._url = plane.url
        self._token = config["users"][0]["user"]["token"]
        self._context = ssl.create_default_context(cafile=str(plane.certificate_authority))

    def __call__(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60, context=self._context) as response:
            return json.load(response)


def job(name: str, workers: int, cpu: str) -> dict[str, Any]:
    """A TrainingJob."""
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "numWorkers": workers,
            "classifier": {"dataset": {"builtin": "Digits"}, "batchSize": max(64, workers)},
            "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}},
        },
    }


@contextmanager
def plane_with_nodes(folder: Path, nodes: int) -> Iterator[ControlPlane]:
    """A control plane with simulated nodes and Headrace's kinds."""
    plane = ControlPlane(folder / "plane")
    plane.start()
    try:
        kubectl: list[str | Path] = [tool("kubectl"), "--kubeconfig", plane.kubeconfig]
        output([*kubectl, "apply", "--server-side", "-f", ROOT / "crds"])
        for name in (NAMESPACE, "headrace-system"):
            output([*kubectl, "create", "namespace", name])
        output([*kubectl, "wait", "--for=condition=Established", "crd", "--all"])
        with simulated_nodes(plane, nodes):
            yield plane
    finally:
        plane.stop()


@contextmanager
def operator(plane: ControlPlane, gang_scheduling: str) -> Iterator[int]:
    """The operator, once it leads; yields its process id."""
    metrics_port, health_port = free_ports(2)
    environment = os.environ | {
        "KUBECONFIG": str(plane.kubeconfig),
        "POD_NAME": "benchmark",
        "POD_NAMESPACE": "headrace-system",
        "HEADRACE_METRICS_PORT": str(metrics_port),
        "HEADRACE_HEALTH_PORT": str(health_port),
        "HEADRACE_GANG_SCHEDULING": gang_scheduling,
    }
    with (plane.folder / "operator.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, ROOT / "operator"], env=environment, stdout=log, stderr=log)
        try:
            wait_until_leading(process, metrics_port)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def gang_start(workers: int, gang_scheduling: str, folder: Path) -> float:
    """Seconds from the creation of a gang until all of its pods have a node."""
    with plane_with_nodes(folder, max(3, workers // 16)) as plane, operator(plane, gang_scheduling):
        api = Api(plane)
        started = time.monotonic()
        api("POST", JOBS, job("gang", workers, "2"))
        query = f"{PODS}?fieldSelector=spec.nodeName!%3D&resourceVersion=0"
        while len(api("GET", query)["items"]) < workers:
            if time.monotonic() - started > DEADLINE:
                raise RuntimeError(f"not all of {workers} workers have a node after {DEADLINE:g} s")
            time.sleep(0.2)
        return time.monotonic() - started


def queue(jobs: int, folder: Path) -> dict[str, Any]:
    """Run a queue of one-worker jobs to its end."""
    done = {"status": {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "False"}]}}
    with plane_with_nodes(folder, 30) as plane:
        api = Api(plane)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: api("POST", JOBS, job(f"job-{n:04}", 1, "20")), range(jobs)))
            items = api("GET", JOBS)["items"]
            line = sorted((item["metadata"]["creationTimestamp"], item["metadata"]["name"]) for item in items)
            admitted: dict[str, str] = {}
            ended: set[str] = set()

            def end(name: str) -> None:
                path = f"{PODS}/{name}/status"
                api("PATCH", path, done, "application/strategic-merge-patch+json")

            with operator(plane, "Queue") as pid:
                started = time.monotonic()
                while len(ended) < jobs:
                    if time.monotonic() - started > DEADLINE:
                        raise RuntimeError(f"{len(ended)} of {jobs} jobs ended within {DEADLINE:g} s")
                    pods = api("GET", f"{PODS}?resourceVersion=0")["items"]
                    running = []
                    for pod in pods:
                        name = pod["metadata"]["name"]
                        admitted.setdefault(name.removesuffix("-worker-0"), pod["metadata"]["creationTimestamp"])
                        if pod["status"]["phase"] == "Running" and name not in ended:
                            running.append(name)
                    list(pool.map(end, running))
                    ended.update(running)
                    time.sleep(0.2)
                took, memory = time.monotonic() - started, peak_mib(pid)
        order = [datetime.fromisoformat(admitted[name]) for _, name in line]
        overtaken, first_behind = 0, datetime.max.replace(tzinfo=UTC)
        for moment in reversed(order):
            # Pods of one pass are created together, and a creation time tells whole seconds.
            overtaken += first_behind + timedelta(seconds=1) < moment if first_behind < moment else 0
            first_behind = min(first_behind, moment)
        return {"jobs": jobs, "all_ended_s": round(took, 1), "overtaken": overtaken, "rss_mib": round(memory, 1)}


def main(arguments: list[str]) -> int:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gang_start", description=__doc__)
    parser.add_argument("--workers", type=int, default=512, help="pods of the gang")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs in the queue")
    options = parser.parse_args(arguments)
    starts: dict[str, float] = {}
    for name, gang_scheduling in (("cluster", "Auto"), ("queue", "Queue")):
        with tempfile.TemporaryDirectory(prefix="headrace-gang-") as folder:
            starts[name] = round(gang_start(options.workers, gang_scheduling, Path(folder)), 2)
        print(f"{options.workers} workers bound by {name}: {starts[name]} s", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="headrace-gang-") as folder:
        queued = queue(options.jobs, Path(folder))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(
        json.dumps(
            {
                "benchmark": "gang_start",
                "machine": {"cpus": os.cpu_count(), "memory_gib": round(memory), "python": platform.python_version()},
                "workers": options.workers,
                "all_bound_s": starts,
                "queue": queued,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
