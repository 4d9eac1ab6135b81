"""A TrainingJob in a queue of a real Kueue: it holds the pods by a gate until the whole group is admitted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from cluster.kueue import kueue
from tests.api.gangs import Team, operated, simulated
from tests.api.rest import MERGE

API = "kueue.x-k8s.io/v1beta2"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with simulated(tmp_path_factory.mktemp("kueue")) as plane, kueue(plane):
        yield plane


def queues(team: Team, cpus: int) -> None:
    """A LocalQueue `team-queue` in the namespace, with so many CPUs behind it."""
    resource = {"name": "cpu", "nominalQuota": str(cpus)}
    flavor = {"coveredResources": ["cpu"], "flavors": [{"name": "any", "resources": [resource]}]}
    objects: list[tuple[str, dict[str, Any]]] = [
        ("resourceflavors", {"kind": "ResourceFlavor", "metadata": {"name": "any"}, "spec": {}}),
        (
            "clusterqueues",
            {
                "kind": "ClusterQueue",
                "metadata": {"name": "all"},
                "spec": {"namespaceSelector": {}, "resourceGroups": [flavor]},
            },
        ),
        (
            f"namespaces/{team.namespace}/localqueues",
            {"kind": "LocalQueue", "metadata": {"name": "team-queue"}, "spec": {"clusterQueue": "all"}},
        ),
    ]
    for plural, body in objects:

        def made(plural: str = plural, body: dict[str, Any] = body) -> bool:
            answer = team.rest("POST", f"/apis/{API}/{plural}", {"apiVersion": API, **body})
            return answer.accepted or "already exists" in answer.message

        team.until(f"the {body['kind']} is made", made)


def leave(team: Team) -> bool:
    """A kubelet says of pods that are deleted that their containers ended; simulated ones do not."""
    for pod in team.pods("first") + team.pods("second"):
        if pod["metadata"].get("deletionTimestamp") and pod["status"]["phase"] != "Failed":
            path = f"/api/v1/namespaces/{team.namespace}/pods/{pod['metadata']['name']}/status"
            team.rest("PATCH", path, {"status": {"phase": "Failed"}}, content_type=MERGE)
    return True


def test_kueue_admits_the_group_when_its_queue_has_room(plane: ControlPlane) -> None:
    with operated(plane, "kueue-team", "Queue") as team:
        queues(team, cpus=9)
        labels = {"kueue.x-k8s.io/queue-name": "team-queue"}
        team.create("first", 3, 2, labels=labels)
        team.until("the first runs", lambda: team.runs("first"))
        team.create("second", 3, 2, labels=labels)
        team.until("the second says who holds it", lambda: team.condition("second")["reason"] == "WaitingForKueue")
        assert "LocalQueue 'team-queue'" in team.condition("second")["message"]
        assert team.bound("second") == 0

        team.patch("first", {"suspend": True})
        team.until("what the first leaves is the second's", lambda: leave(team) and team.runs("second"))
        team.patch("first", {"suspend": False})
        team.until("the first waits now", lambda: team.condition("first")["reason"] == "WaitingForKueue")
        team.patch("second", {"suspend": True})
        team.until("and runs again", lambda: leave(team) and team.runs("first"))
