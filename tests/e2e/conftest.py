"""One cluster and one installation for all e2e tests; a namespace of its own for each module."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.e2e.installation import Helm, Zones, ready_platform
from tests.e2e.kube import Kube


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The chart of this checkout, installed on the local cluster with this checkout's images."""
    return ready_platform()


@pytest.fixture(scope="module")
def kube(helm: Helm, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """kubectl in a fresh namespace, removed with all that is in it."""
    namespace = re.sub(r"[^a-z0-9]+", "-", request.module.__name__.rpartition(".")[2].removeprefix("test_"))
    client = Kube(helm.kubectl, helm.kubeconfig, f"e2e-{namespace}")
    client.run("delete", "namespace", client.namespace, "--ignore-not-found")
    client.run("create", "namespace", client.namespace)
    client.run("label", "namespace", client.namespace, "pod-security.kubernetes.io/enforce=restricted")
    yield client
    client.run("delete", "namespace", client.namespace, "--wait=false")


@pytest.fixture(scope="session")
def zones(helm: Helm) -> Zones:
    """The zones of the cluster, to be paused."""
    return Zones(helm)
