"""What the local cluster promises beyond three zones: metrics, enforced NetworkPolicies, gangs, a quiet `up`."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from cluster.kubectl import Kube, Manifest, wait_for
from tests.e2e.installation import ROOT
from tests.e2e.resources import pod, running


def test_node_metrics_are_served(kube: Kube) -> None:
    rows = wait_for("metrics-server answers", lambda: kube.run("top", "nodes", "--no-headers").split("\n"), seconds=90)
    assert sum(bool(row.strip()) for row in rows) == 4


def test_network_policies_are_enforced(kube: Kube) -> None:
    wait_forever = ["sleep", "600"]
    kube.apply(
        pod("server", ["python3", "-m", "http.server", "8080", "--directory", "/tmp"], labels={"app": "server"}),
        pod("friend", wait_forever, labels={"role": "friend"}),
        pod("stranger", wait_forever),
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "friends-only"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}],
            },
        },
    )
    for name in ("server", "friend", "stranger"):
        wait_for(f"{name} runs", partial(running, kube, name), seconds=60)
    address = kube.get("pod", "server")["status"]["podIP"]
    code = f"import urllib.request; print(urllib.request.urlopen('http://{address}:8080', timeout=2).status)"

    def reaches(name: str) -> bool:
        return "200" in kube.run("exec", name, "--", "python3", "-c", code, check=False)

    wait_for(
        "the friend is let in and the stranger is not",
        lambda: reaches("friend") and not reaches("stranger"),
        seconds=60,
    )


def test_the_scheduler_starts_a_gang_whole_or_not_at_all(kube: Kube) -> None:
    group = {
        "apiVersion": "scheduling.k8s.io/v1alpha2",
        "kind": "PodGroup",
        "metadata": {"name": "gang"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": 3}}},
    }

    def member(number: int) -> Manifest:
        return pod(f"gang-{number}", ["sleep", "600"], schedulingGroup={"podGroupName": "gang"})

    kube.apply(group, member(0), member(1))

    # A pod that came later and belongs to no gang is bound: the scheduler has been here.
    kube.apply(pod("bystander", ["sleep", "600"]))
    wait_for("the bystander runs", partial(running, kube, "bystander"), seconds=60)
    waiting = [kube.get("pod", f"gang-{number}") for number in (0, 1)]
    assert not any(item["spec"].get("nodeName") for item in waiting), "a part of the gang was bound"
    kube.apply(member(2))
    wait_for("the whole gang runs", lambda: all(running(kube, f"gang-{n}") for n in range(3)), seconds=60)


def test_a_cluster_that_is_up_is_left_as_it_is(kube: Kube) -> None:
    before = {node["metadata"]["name"]: node["metadata"]["uid"] for node in kube.list("nodes")}
    subprocess.run([sys.executable, "-m", "headrace.cli", "cluster", "up"], check=True, cwd=ROOT, timeout=120)
    assert before == {node["metadata"]["name"]: node["metadata"]["uid"] for node in kube.list("nodes")}
