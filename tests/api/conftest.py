"""A real kube-apiserver and etcd, without nodes, that serves Headrace's kinds; shared by all tests of this folder."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import controlplane
from cluster.tools import tool

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
