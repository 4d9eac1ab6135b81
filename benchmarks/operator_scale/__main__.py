"""How fast, and at what cost, TrainingJobs become running pods: `python -m benchmarks.operator_scale [500 1000 2000]`.

A real kube-apiserver, etcd, kube-scheduler and kube-controller-manager; nodes and kubelets are simulated by kwok; the
operator is the released program in a process of its own. Everything shares this machine, so the figures include what
the rest of the control plane takes: it is given by program. Each size runs on a fresh control plane, once that has
come to rest. Prints one JSON line.

Latency of a resource is the time from the moment that its creation was acknowledged until a watch shows the
condition Ready=True for its present generation, that is, all of its workers run.
"""

from __future__ import annotations

import argparse
import asyncio
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.operator_scale.accounting import Account, peak_mib, requests_served, wait_until_quiet
from cluster.controlplane import ControlPlane, free_ports
from cluster.kwok import simulated_nodes
from cluster.process import output
from cluster.tools import tool

ROOT = Path(__file__).parents[2]
NAMESPACES = 10
JOBS_PATH = "/apis/headrace.dev/v1alpha1/namespaces/{}/trainingjobs"
DEADLINE = 300.0


@dataclass(frozen=True, slots=True)
class Result:
    """One size.

    Attributes:
        resources: TrainingJobs, of `workers` pods each.
        created_s: Seconds until all were created.
        all_running_s: Seconds from the first creation until all were Ready.
        p50_s: Median latency of one resource.
        p99_s: 99th percentile.
        api_calls_per_resource: Requests of the operator to the API server, watches and Lease included.
        api_requests_per_resource: Requests of everybody that the API server answered, watches left out.
        cpu_ms_per_resource: CPU time by program; `elsewhere` is what the rest of the machine used meanwhile.
        rss_mib: Peak resident memory of the operator.
        requests: Requests by verb and resource, for each resource of the benchmark.
    """

    resources: int
    created_s: float
    all_running_s: float
    p50_s: float
    p99_s: float
    api_calls_per_resource: float
    api_requests_per_resource: float
    cpu_ms_per_resource: dict[str, float]
    rss_mib: float
    requests: dict[str, float]


def job(number: int, workers: int) -> dict[str, Any]:
    """A TrainingJob."""
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": f"job-{number}"},
        "spec": {
            "numWorkers": workers,
            "classifier": {"dataset": {"builtin": "Digits"}},
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        },
    }


async def measure(
    config: dict[str, Any], authority: Path, count: int, workers: int
) -> tuple[float, float, list[float]]:
    """Create the jobs and watch them.

    Returns:
        Seconds until all were created, seconds until all were Ready, and the latency of each in seconds.
    """
    url = config["clusters"][0]["cluster"]["server"]
    headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
    created: dict[str, float] = {}
    ready: dict[str, float] = {}
    complete = asyncio.Event()
    connector = aiohttp.TCPConnector(limit=32, ssl=ssl.create_default_context(cafile=str(authority)))
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, headers=headers, connector=connector, timeout=timeout) as session:

        async def watch() -> None:
            while not complete.is_set():  # the server ends watches of a CRD that has just been established
                await watch_once()

        async def watch_once() -> None:
            query = {"watch": "true", "resourceVersion": "0"}
            async with session.get("/apis/headrace.dev/v1alpha1/trainingjobs", params=query) as response:
                response.raise_for_status()
                buffer = b""
                async for chunk in response.content.iter_any():
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        body = json.loads(line)["object"]
                        name = body["metadata"].get("name", "")
                        if name in ready or b'"Ready"' not in line:
                            continue
                        conditions = body.get("status", {}).get("conditions", [])
                        if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
                            ready[name] = time.monotonic()
                            if len(ready) == count:
                                complete.set()

        async def create(numbers: list[int]) -> None:
            for number in numbers:
                path = JOBS_PATH.format(f"team-{number % NAMESPACES}")
                async with session.post(path, json=job(number, workers)) as response:
                    if response.status != 201:
                        raise RuntimeError(f"creating job-{number}: {response.status} {await response.text()}")
                created[f"job-{number}"] = time.monotonic()

        watching = asyncio.create_task(watch())
        started = time.monotonic()
        await asyncio.gather(*(create(list(range(worker, count, 16))) for worker in range(16)))
        created_all = time.monotonic() - started
        finished = asyncio.create_task(complete.wait())
        await asyncio.wait({finished, watching}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        if not complete.is_set():
            raise RuntimeError(f"only {len(ready)} of {count} jobs were Ready after {DEADLINE:g} s")
        watching.cancel()
        return created_all, max(ready.values()) - started, sorted(ready[name] - created[name] for name in created)


def calls_made(metrics_port: int) -> float:
    """API calls of the operator so far."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10).read().decode()
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("rest_client_requests_total{")
    )


def run(count: int, workers: int, folder: Path, gogc: int = 100) -> Result:
    """One size on a fresh control plane."""
    plane = ControlPlane(folder, gogc=gogc)
    plane.start()
    operator: subprocess.Popen[bytes] | None = None
    try:
        kubectl: list[str | Path] = [tool("kubectl"), "--kubeconfig", plane.kubeconfig]
        output([*kubectl, "apply", "--server-side", "-f", ROOT / "crds"])
        for number in range(NAMESPACES):
            output([*kubectl, "create", "namespace", f"team-{number}"])
        output([*kubectl, "create", "namespace", "headrace-system"])
        output([*kubectl, "wait", "--for=condition=Established", "crd", "--all"])
        metrics_port, health_port = free_ports(2)
        environment = os.environ | {
            "KUBECONFIG": str(plane.kubeconfig),
            "POD_NAME": "benchmark",
            "POD_NAMESPACE": "headrace-system",
            "HEADRACE_METRICS_PORT": str(metrics_port),
            "HEADRACE_HEALTH_PORT": str(health_port),
        }
        with (
            simulated_nodes(plane, max(30, count * workers // 200)) as simulation,
            (folder / "operator.log").open("wb") as log,
        ):
            operator = subprocess.Popen([sys.executable, ROOT / "operator"], env=environment, stdout=log, stderr=log)
            wait_until_leading(operator, metrics_port)
            wait_until_quiet(plane.pids["kube-apiserver"])
            config = json.loads(plane.kubeconfig.read_text())
            asked = plane.url, config["users"][0]["user"]["token"], plane.certificate_authority
            served_before = requests_served(*asked)
            calls_before = calls_made(metrics_port)
            everybody = {**plane.pids, **simulation, "operator": operator.pid, "load generator": os.getpid()}
            account = Account(everybody)
            created, all_running, latencies = asyncio.run(measure(config, plane.certificate_authority, count, workers))
            used = account.close()
            calls = calls_made(metrics_port) - calls_before
            rss = peak_mib(operator.pid)
            served = requests_served(*asked) - served_before
            operator.send_signal(signal.SIGTERM)
            operator.wait(30)
        return Result(
            resources=count,
            created_s=round(created, 2),
            all_running_s=round(all_running, 2),
            p50_s=round(latencies[len(latencies) // 2], 2),
            p99_s=round(latencies[int(len(latencies) * 0.99)], 2),
            api_calls_per_resource=round(calls / count, 2),
            api_requests_per_resource=round(served.total() / count, 2),
            cpu_ms_per_resource={name: round(seconds / count * 1000, 2) for name, seconds in used.items()},
            rss_mib=round(rss, 1),
            requests={name: round(n / count, 2) for name, n in served.most_common() if n >= count / 100},
        )
    finally:
        if operator is not None and operator.poll() is None:
            operator.kill()
        plane.stop()


def wait_until_leading(operator: subprocess.Popen[bytes], metrics_port: int) -> None:
    """Return when the operator leads and serves metrics."""
    deadline = time.monotonic() + 60
    while True:
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5).read().decode()
            if 'leader_election_master_status{name="headrace-operator"} 1.0' in text:
                return
        except OSError as error:
            if operator.poll() is not None:
                raise RuntimeError(f"the operator ended with exit code {operator.returncode}") from error
        if time.monotonic() > deadline:
            raise RuntimeError("the operator did not lead within 60 s")
        time.sleep(0.2)


def main(arguments: list[str]) -> int:
    """Run every size and print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator_scale", description=__doc__)
    parser.add_argument("counts", nargs="*", type=int, default=[500, 1000, 2000], help="TrainingJobs of each run")
    parser.add_argument("--workers", type=int, default=2, help="pods of each TrainingJob")
    parser.add_argument("--gogc", type=int, default=100, help="GOGC of kube-apiserver; 100 is what it comes with")
    options = parser.parse_args(arguments)
    results = []
    for count in options.counts:
        with tempfile.TemporaryDirectory(prefix="headrace-scale-") as folder:
            results.append(run(count, options.workers, Path(folder), options.gogc))
            print(results[-1], file=sys.stderr, flush=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(
        json.dumps(
            {
                "benchmark": "operator_scale",
                "machine": {"cpus": os.cpu_count(), "memory_gib": round(memory), "python": platform.python_version()},
                "workers_per_resource": options.workers,
                "kube_apiserver_gogc": options.gogc,
                "results": [asdict(result) for result in results],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
