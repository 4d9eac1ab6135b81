"""A real kube-apiserver and etcd, without nodes, that serves Headrace's kinds; shared by all tests of this folder."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import controlplane
from cluster.tools import tool
from tests.api.helm import Helm

CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The administrator's kubeconfig."""
    with controlplane.control_plane(tmp_path_factory.mktemp("control-plane")) as kubeconfig:
        kubectl = [str(tool("kubectl")), "--kubeconfig", str(kubeconfig)]
        subprocess.run([*kubectl, "apply", "--server-side", "-f", str(CRDS)], check=True, capture_output=True)
        subprocess.run(
            [*kubectl, "wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS)],
            check=True,
            capture_output=True,
        )
        yield kubeconfig


@pytest.fixture(scope="session")
def helm(control_plane: Path) -> Helm:
    """The chart, installed with no value set."""
    # Made by kubectl above; helm takes over only what says that it is the release's.
    kubectl = [str(tool("kubectl")), "--kubeconfig", str(control_plane)]
    mark: dict[str, tuple[str, ...]] = {
        "annotate": ("meta.helm.sh/release-name=headrace", "meta.helm.sh/release-namespace=headrace-system")
    }
    mark["label"] = ("app.kubernetes.io/managed-by=Helm",)
    for verb, values in mark.items():
        subprocess.run([*kubectl, verb, "-f", str(CRDS), *values, "--overwrite"], check=True, capture_output=True)
    helm = Helm(control_plane)
    helm.install()
    # Nothing runs here, so nobody answers reviews: each would wait for its timeout.
    configuration = "validatingwebhookconfiguration/headrace-webhook"
    subprocess.run([*kubectl, "delete", configuration], check=True, capture_output=True)
    return helm
