"""Topologies on the cluster: the jobs of the example, all at the same time, over the three zones."""

from __future__ import annotations

from pathlib import Path

import yaml

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "trainingjob-topologies.yaml"


def finished(kube: Kube, name: str) -> Manifest | None:
    job = kube.get("trainingjob", name)
    assert not is_true(job, "Failed"), condition(job, "Failed")["message"]
    return job if is_true(job, "Succeeded") else None


def test_every_topology_trains_over_zones(kube: Kube) -> None:
    jobs = [item for item in yaml.safe_load_all(EXAMPLE.read_text()) if item]
    kube.apply(*jobs)
    for name in ("hierarchical", "pipeline", "sharded", "zones"):
        job = wait_for(f"{name} finishes", lambda name=name: finished(kube, name), seconds=180)  # type: ignore[misc]
        # One process reaches 0.96 to 0.98 on these 360 test digits (tests/image/test_strategies.py).
        assert float(job["status"]["metrics"]["accuracy"]) > 0.94, name
        if name == "hierarchical":
            assert all(place["bandwidth"].endswith("MB/s") for place in job["status"]["placement"])
    for name in ("hierarchical", "zones"):
        # The API server tells a pod its node's zone (PodTopologyLabels), and workers group by it.
        assert "3 groups of processes by place" in kube.run("logs", f"{name}-worker-0")
    assert "1 replicas of 2 shards, layers split over 2" in kube.run("logs", "sharded-worker-0")
    assert "pipeline of 2 stages" in kube.run("logs", "pipeline-worker-0")
