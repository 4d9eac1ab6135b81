"""Requests from inside the cluster, as a patient client sends them, while a test breaks something.

The client runs in a pod, bounded in rate and time. A request is tried again on a new connection when a try times out
or gets no 2xx, as HTTP clients with a retry policy do; it counts as failed when every try did.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.kubectl import Kube, Manifest, wait_for

CLIENT = textwrap.dedent(
    """\
    import collections, concurrent.futures, http.client, json, os, pathlib, time
    host, path, body = os.environ["HOST"], os.environ["URL_PATH"], os.environ["BODY"].encode()
    tries, timeout = int(os.environ["TRIES"]), float(os.environ["TRY_TIMEOUT"])
    deadline = time.monotonic() + float(os.environ["SECONDS"])
    rate = float(os.environ["RATE"])
    stop = pathlib.Path("/tmp/stop")

    def ask(number):
        started, errors = time.monotonic(), []
        for attempt in range(tries):
            connection = http.client.HTTPConnection(host, 80, timeout=timeout)
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                text = response.read()
                if response.status == 200:
                    return response.headers.get("headrace-step"), time.monotonic() - started, attempt, ""
                errors.append(f"{response.status} {text[:200]!r}")
            except OSError as error:
                errors.append(repr(error))
            except http.client.HTTPException as error:
                errors.append(repr(error))
            finally:
                connection.close()
        return None, time.monotonic() - started, attempt, "; ".join(errors)

    steps, latencies, retries, failures, n = collections.Counter(), [], 0, [], 0
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        futures = []
        while time.monotonic() < deadline and not stop.exists():
            futures.append(pool.submit(ask, n))
            n += 1
            if n == 20:
                print("flowing", flush=True)
            time.sleep(max(0.0, began + n / rate - time.monotonic()))
        for future in futures:
            step, seconds, attempt, error = future.result()
            latencies.append(seconds)
            retries += attempt
            if step is None:
                failures.append(error)
            else:
                steps[step] += 1
    latencies.sort()
    print("REPORT " + json.dumps({"total": n, "failures": failures[:5], "failed": len(failures), "retries": retries,
          "steps": steps, "p50": latencies[len(latencies) // 2], "max": latencies[-1]}), flush=True)
    """
)


@dataclass(slots=True)
class Report:
    """What the client saw.

    Attributes:
        total: Requests sent.
        failed: Requests of which no try was answered with 200.
        failures: The errors of the first few of them.
        retries: Tries beyond the first, over all requests.
        steps: Answered requests by the step that answered.
        p50: Median seconds of a request, its retries included.
        max: The slowest.
    """

    total: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    retries: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    p50: float = 0.0
    max: float = 0.0


def digits_request(rows: int = 1) -> dict[str, Any]:
    """An Open Inference Protocol request for the digits model: blank images."""
    return {"inputs": [{"name": "input", "shape": [rows, 64], "datatype": "FP32", "data": [0.0] * 64 * rows}]}


def _pod(name: str, service: str, kube: Kube, zone: str, rate: float, seconds: float) -> Manifest:
    environment = {
        "HOST": f"{service}.{kube.namespace}.svc.cluster.local",
        "URL_PATH": f"/v2/models/{service}/infer",
        "BODY": json.dumps(digits_request()),
        "TRIES": "4",
        "TRY_TIMEOUT": "5",
        "SECONDS": str(seconds),
        "RATE": str(rate),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": {"topology.kubernetes.io/zone": zone},
            "dnsConfig": {"options": [{"name": "timeout", "value": "1"}, {"name": "attempts", "value": "3"}]},
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "client",
                    "image": "headrace/serving:0.1.0",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", CLIENT],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "env": [{"name": key, "value": value} for key, value in environment.items()],
                }
            ],
        },
    }


@contextmanager
def traffic(kube: Kube, service: str, *, zone: str = "a", rate: float = 20, seconds: float = 280) -> Iterator[Report]:
    """Requests flow to the service while the context lasts; the report is filled in when it ends.

    Args:
        zone: Zone of the client.
        rate: Requests per second.
        seconds: The client stops by itself after this time.
    """
    name = f"client-{service}"
    report = Report()
    kube.delete("pod", name, force=True)
    kube.apply(_pod(name, service, kube, zone, rate, seconds))
    try:
        wait_for("requests flow", lambda: "flowing" in kube.run("logs", name, check=False), seconds=60)
        yield report
        # One that has ended by itself has reported too.
        kube.run("exec", name, "--", "touch", "/tmp/stop", check=False)

        def last_line() -> str | None:
            lines = [x for x in kube.run("logs", name).splitlines() if x.startswith("REPORT ")]
            return lines[-1] if lines else None

        line = wait_for("the client reports", last_line, seconds=60)
        for key, value in json.loads(line.removeprefix("REPORT ")).items():
            setattr(report, key, value)
    finally:
        kube.delete("pod", name, force=True, wait=False)
