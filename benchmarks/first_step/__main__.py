"""From `kubectl apply` to the first step: `python -m benchmarks.first_step [--runs 5]`. Prints one JSON line.

A TrainingJob of three workers over three zones of the local cluster, which must be up with the chart installed (`make
images`); images are in the nodes. The job's script says when worker 0 had done its first step, an all-reduce over all
workers; cluster and benchmark share the machine's clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

from cluster.kubectl import is_true, wait_for
from cluster.release import Release

NAMESPACE = "headrace-first-step"
SCRIPT = """\
import time

import torch
import torch.distributed as dist

import headrace.training

with headrace.training.session() as run:
    joined = time.time()
    total = torch.ones(1)
    dist.all_reduce(total)
    run.report(step=1, steps=1)
    if run.rank == 0:
        print("first-step", time.time(), "joined", joined, flush=True)
"""


def manifests(name: str) -> list[dict[str, Any]]:
    """The script and the job that runs it."""
    spec = {
        "numWorkers": 3,
        "script": {"configMap": {"name": name, "key": "train.py"}},
        "resources": {"requests": {"cpu": "100m", "memory": "300Mi"}, "limits": {"memory": "1Gi"}},
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"train.py": SCRIPT}},
        {"apiVersion": "headrace.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name}, "spec": spec},
    ]


def main() -> int:
    """Run the jobs one after another and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    kube = Release.local().kube(NAMESPACE)
    kube.run("create", "namespace", NAMESPACE, check=False)
    seconds: list[float] = []
    try:
        for number in range(runs):
            name = f"run-{number}"
            began = time.time()
            kube.apply(*manifests(name))
            wait_for(name, lambda name=name: is_true(kube.get("trainingjob", name), "Succeeded"), seconds=180)  # type: ignore[misc]
            line = next(x for x in kube.run("logs", f"{name}-worker-0").splitlines() if x.startswith("first-step"))
            seconds.append(float(line.split()[1]) - began)
            kube.delete("trainingjob", name)
    finally:
        kube.run("delete", "namespace", NAMESPACE, "--wait=false")
    figures = {
        "benchmark": "first_step",
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
        "workers": 3,
        "seconds": [round(each, 1) for each in seconds],
        "median": round(statistics.median(seconds), 1),
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
