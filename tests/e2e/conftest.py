"""One cluster and one installation for all e2e tests; a namespace of its own for each module."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from cluster.kubectl import Kube
from cluster.release import Release
from tests.e2e.installation import Zones, ready_platform


@pytest.fixture(scope="session")
def release() -> Release:
    """The chart of this checkout, installed on the local cluster with this checkout's images."""
    return ready_platform()


@pytest.fixture(scope="module")
def kube(release: Release, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """kubectl in a fresh namespace, removed with all that is in it."""
    namespace = re.sub(r"[^a-z0-9]+", "-", request.module.__name__.rpartition(".")[2].removeprefix("test_"))
    client = release.kube(f"e2e-{namespace}")
    client.run("delete", "namespace", client.namespace, "--ignore-not-found")
    client.run("create", "namespace", client.namespace)
    client.run("label", "namespace", client.namespace, "pod-security.kubernetes.io/enforce=restricted")
    yield client
    client.run("delete", "namespace", client.namespace, "--wait=false")


@pytest.fixture(scope="session")
def zones(release: Release) -> Zones:
    """The zones of the cluster, to be paused."""
    return Zones(release)
