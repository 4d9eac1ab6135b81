"""The chart of this checkout as the Helm release `headrace`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster import images
from cluster.kind import kubeconfig
from cluster.kubectl import Kube
from cluster.process import ClusterError
from cluster.tools import tool

CHART = Path(__file__).parents[1] / "charts" / "headrace"
SYSTEM_NAMESPACE = "headrace-system"
LEASE = "headrace-operator"


@dataclass(frozen=True, slots=True)
class Release:
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
        if done.returncode != 0:
            raise ClusterError(
                f"helm {' '.join(arguments)} failed: {done.stderr.strip()} {done.stdout[-2000:]}".strip()
            )
        return done.stdout

    @classmethod
    def local(cls) -> Release:
        """The release on the local cluster."""
        return cls(tool("helm"), tool("kubectl"), kubeconfig())

    def kube(self, namespace: str = SYSTEM_NAMESPACE) -> Kube:
        """kubectl against the same cluster."""
        return Kube(self.kubectl, self.kubeconfig, namespace)

    def install(self, chart: Path = CHART, values: dict[str, str] | None = None) -> None:
        """Install or upgrade, and wait until everything is ready.

        The operator's pods carry the hash of the image that was loaded, so that a new image under the same tag runs.
        """
        image = {"operator.podAnnotations.image": images.loaded().get("operator", "")}
        sets = [item for key, value in (image | (values or {})).items() for item in ("--set-string", f"{key}={value}")]
        self._forget_interrupted()
        self.run("upgrade", "--install", "headrace", str(chart), "--create-namespace", "--wait", "--timeout=4m", *sets)

    def _forget_interrupted(self) -> None:
        """A helm that was killed leaves a pending revision, with which no later helm would begin."""
        pending = "owner=helm,name=headrace,status in (pending-install,pending-upgrade,pending-rollback)"
        self.kube().run("delete", "secret", "-l", pending)

    def rollback(self) -> None:
        """Back to the revision before."""
        self.run("rollback", "headrace", "--wait", "--timeout=5m")

    def test(self) -> None:
        """Run the chart's tests."""
        self.run("test", "headrace", "--timeout=3m")


def leader_pod(system: Kube) -> str:
    """Name of the operator pod that holds the Lease now, or empty."""
    lease = system.find("lease", LEASE)
    return ((lease or {}).get("spec", {}).get("holderIdentity") or "").partition("_")[0]
