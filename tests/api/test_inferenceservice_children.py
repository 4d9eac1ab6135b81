"""A real API server takes the children of an InferenceService, and its strictest Pod Security level their pods."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.tools import tool
from controllers.inferenceservice.controller import InferenceServiceController
from controllers.inferenceservice.observed import Observed
from controllers.runtime.objects import DEPLOYMENT, Manifest
from controllers.runtime.plan import Plan
from controllers.runtime.settings import Settings
from headrace.api import InferenceService

NAMESPACE = "isvc-children"


def everything() -> Plan:
    """The first plan of a service that uses every kind of child and most options."""
    service = {
        "metadata": {"name": "digits", "namespace": NAMESPACE, "uid": "8c1f6d2e-0000-4000-8000-000000000001"},
        "spec": {
            "predictor": {
                "model": {"storageUri": "s3://models/large", "secretRef": {"name": "team-s3"}},
                "minReplicas": 2,
                "maxReplicas": 5,
                "timeout": "1500ms",
                "resources": {"requests": {"cpu": "0.5"}, "limits": {"memory": "1Gi"}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "tolerations": [{"key": "dedicated", "operator": "Exists"}],
                "nodeSelector": {"disk": "ssd"},
            },
            "fallback": [
                {"name": "small", "model": {"storageUri": "s3://models/small", "secretRef": {"name": "team.b"}}},
                {"name": "tiny", "model": {"storageUri": "s3://models/tiny"}},
                {
                    "name": "static",
                    "static": {"outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [-1]}]},
                },
            ],
            "router": {"imagePullSecrets": [{"name": "registry"}], "priorityClassName": "system-cluster-critical"},
        },
    }
    controller = InferenceServiceController(Settings())
    return controller.plan(InferenceService.model_validate(service), Observed(), datetime(2026, 11, 25, tzinfo=UTC))


@pytest.fixture(scope="module")
def kubectl(control_plane: Path) -> list[str]:
    """kubectl in a namespace that enforces the restricted Pod Security Standard."""
    command = [str(tool("kubectl")), "--kubeconfig", str(control_plane)]
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    apply(command, namespace)
    return command


def apply(kubectl: list[str], *manifests: Manifest, dry_run: bool = False) -> str:
    """Apply with every unknown and every doubled field an error."""
    done = subprocess.run(
        [*kubectl, "apply", "--server-side", "--validate=strict", *(["--dry-run=server"] if dry_run else []), "-f-"],
        input="\n---\n".join(json.dumps(item) for item in manifests),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_every_child_is_accepted(kubectl: list[str]) -> None:
    assert apply(kubectl, *(item.manifest for item in everything().applies), dry_run=True) == ""


def test_the_pods_pass_the_restricted_standard(kubectl: list[str]) -> None:
    templates = [item.manifest["spec"]["template"] for item in everything().applies if item.type == DEPLOYMENT]
    assert len(templates) == 2
    for index, template in enumerate(templates):
        pod: Manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": template["metadata"] | {"name": f"pod-{index}", "namespace": NAMESPACE},
            "spec": template["spec"],
        }
        apply(kubectl, pod, dry_run=True)
