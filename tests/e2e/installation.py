"""The cluster and the chart as the e2e tests need them, and the handles to break and to measure them."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest

from cluster.host import docker
from cluster.kubectl import Kube, wait_for
from cluster.release import CHART, SYSTEM_NAMESPACE, Release

ROOT = Path(__file__).parents[2]


def ready_platform() -> Release:
    """Cluster up, images loaded, chart installed: each step does nothing where nothing changed."""
    for step in (("cluster", "up"), ("cluster", "load")):
        done = subprocess.run([sys.executable, "-m", "headrace.cli", *step], check=False, cwd=ROOT)
        assert done.returncode == 0, f"headrace {' '.join(step)} failed; its own output says why"
    release = Release.local()
    release.install()
    return release


def previous_chart() -> Path:
    """The chart as the commit before the last change of it had it; this checkout's where there is none."""
    commits = _git("log", "-2", "--format=%H", "--", "charts/headrace").decode().split()
    if len(commits) < 2:
        return CHART
    folder = Path(tempfile.mkdtemp(prefix="headrace-chart-"))
    with tarfile.open(fileobj=BytesIO(_git("archive", commits[1], "charts/headrace"))) as tar:
        tar.extractall(folder, filter="data")
    return folder / "charts" / "headrace"


def _git(*arguments: str) -> bytes:
    """Output of git in this checkout. It may belong to another user, which git refuses unless it is told otherwise.

    Where there is no repository the test fails with git's own words.
    """
    command = ["git", "-c", f"safe.directory={ROOT}", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        pytest.fail(
            f"`git {' '.join(arguments)}` in {ROOT} failed: {done.stderr.decode().strip()}\n"
            "The upgrade is tested from the chart of an earlier commit: run this in a git clone with its history.",
            pytrace=False,
        )
    return done.stdout


def metric_sum(text: str, name: str, *labels: str) -> float:
    """Sum over the samples of a metric that carry every given `key="value"` text."""
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(name + "{") and all(label in line for label in labels)
    )


def writes_by_operator(kube: Kube, leader: str) -> float:
    """API writes of the leading operator so far, its Lease's renewals not counted (they alone are PUT)."""
    with kube.within(SYSTEM_NAMESPACE).forward(f"pod/{leader}", 8080) as port:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return sum(
        metric_sum(text, "rest_client_requests_total", f'method="{method}"') for method in ("POST", "PATCH", "DELETE")
    )


@dataclass(frozen=True, slots=True)
class Zones:
    """The zones of the local cluster: each worker node is a container that can be frozen."""

    release: Release

    def _kube(self) -> Kube:
        return self.release.kube("default")

    def nodes(self, zone: str) -> list[str]:
        """Nodes of a zone."""
        nodes = self._kube().list("nodes", f"topology.kubernetes.io/zone={zone}")
        return [node["metadata"]["name"] for node in nodes]

    def of_node(self, name: str) -> str:
        """Zone of a node."""
        return str(self._kube().get("node", name)["metadata"]["labels"].get("topology.kubernetes.io/zone", ""))

    def ready(self, zone: str) -> bool:
        """Whether every node of the zone is Ready."""
        nodes = self._kube().list("nodes", f"topology.kubernetes.io/zone={zone}")
        return all(
            condition["status"] == "True"
            for node in nodes
            for condition in node["status"]["conditions"]
            if condition["type"] == "Ready"
        )

    @contextmanager
    def cut(self, one: str, other: str) -> Iterator[None]:
        """No packet between the pods of two nodes while the context lasts; both reach everybody else.

        Routes to the halves of a node's pods are nearer than the one to all of them that the network plug-in keeps.
        """
        added: list[tuple[str, str]] = []
        try:
            for here, there in ((one, other), (other, one)):
                network = ipaddress.ip_network(self._kube().get("node", there)["spec"]["podCIDR"])
                for half in map(str, network.subnets()):
                    docker("exec", here, "ip", "route", "add", "blackhole", half)
                    added.append((here, half))
            yield
        finally:
            for here, half in added:
                docker("exec", here, "ip", "route", "del", "blackhole", half)

    @contextmanager
    def paused(self, zone: str) -> Iterator[None]:
        """Every node of the zone stands still while the context lasts."""
        nodes = self.nodes(zone)
        docker("pause", *nodes)
        try:
            yield
        finally:
            docker("unpause", *nodes)
            wait_for(f"zone {zone} is back", lambda: self.ready(zone), seconds=90)
