"""The cluster and the chart as the e2e tests need them, and the handles to break and to measure them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from cluster.tools import tool
from tests.e2e.kube import Kube, wait_for

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "headrace"
SYSTEM_NAMESPACE = "headrace-system"
LEASE = "headrace-operator"


@dataclass(frozen=True, slots=True)
class Helm:
    """The release `headrace`, as an administrator handles it."""

    helm: Path
    kubectl: Path
    kubeconfig: Path

    def run(self, *arguments: str) -> str:
        """Run helm in the system namespace; an error carries helm's own words."""
        done = subprocess.run(
            [str(self.helm), "--kubeconfig", str(self.kubeconfig), "-n", SYSTEM_NAMESPACE, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"helm {' '.join(arguments)} failed: {done.stderr.strip()} {done.stdout[-2000:]}"
        return done.stdout

    def install(self, chart: Path = CHART, values: Mapping[str, str] | None = None) -> None:
        """Install or upgrade, and wait until everything is ready."""
        sets = [item for key, value in (values or {}).items() for item in ("--set-string", f"{key}={value}")]
        self.run("upgrade", "--install", "headrace", str(chart), "--create-namespace", "--wait", "--timeout=5m", *sets)

    def rollback(self) -> None:
        """Back to the revision before."""
        self.run("rollback", "headrace", "--wait", "--timeout=5m")

    def test(self) -> None:
        """Run the chart's tests."""
        self.run("test", "headrace", "--timeout=3m")


def _headrace(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli", *arguments], stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, f"headrace {' '.join(arguments)} failed; its own output says why"
    return done.stdout


def ready_platform() -> Helm:
    """Cluster up, images loaded, chart installed: each step does nothing where nothing changed."""
    _headrace("cluster", "up")
    _headrace("cluster", "load")
    _headrace("install")
    return Helm(tool("helm"), tool("kubectl"), Path(_headrace("cluster", "kubeconfig").strip()))


def previous_chart() -> Path:
    """The chart as the commit before the last change of it had it; this checkout's where there is none."""
    commits = subprocess.run(
        ["git", "log", "-2", "--format=%H", "--", "charts/headrace"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    if len(commits) < 2:
        return CHART
    archive = subprocess.run(
        ["git", "archive", commits[1], "charts/headrace"], capture_output=True, check=True, cwd=ROOT
    ).stdout
    folder = Path(tempfile.mkdtemp(prefix="headrace-chart-"))
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "charts" / "headrace"


def leader_pod(system: Kube) -> str:
    """Name of the operator pod that holds the Lease now, or empty."""
    lease = system.find("lease", LEASE)
    return ((lease or {}).get("spec", {}).get("holderIdentity") or "").partition("_")[0]


def metric_sum(text: str, name: str, *labels: str) -> float:
    """Sum over the samples of a metric that carry every given `key="value"` text."""
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(name + "{") and all(label in line for label in labels)
    )


def writes_by_operator(kube: Kube, leader: str) -> float:
    """API writes of the leading operator so far, its Lease's renewals not counted."""
    with kube.within(SYSTEM_NAMESPACE).forward(f"pod/{leader}", 8080) as port:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return sum(
        metric_sum(text, "rest_client_requests_total", f'method="{method}"')
        for method in ("POST", "PUT", "PATCH", "DELETE")
    )


@dataclass(frozen=True, slots=True)
class Zones:
    """The zones of the local cluster: each worker node is a container that can be frozen."""

    helm: Helm

    def _kube(self) -> Kube:
        return Kube(self.helm.kubectl, self.helm.kubeconfig, "default")

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
    def paused(self, zone: str) -> Iterator[None]:
        """Every node of the zone stands still while the context lasts."""
        nodes = self.nodes(zone)
        subprocess.run(["docker", "pause", *nodes], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["docker", "unpause", *nodes], check=True, capture_output=True)
            wait_for(f"zone {zone} is back", lambda: self.ready(zone), seconds=90)
