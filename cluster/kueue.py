"""Kueue beside a bare control plane: its controller and webhooks for pods, as a process on loopback.

    with kueue(plane):
        ...

Kueue makes its webhooks' certificate itself and keeps it in a Secret; what mounts that in a cluster is done here by
copying it. The API server reaches the webhooks by a Service that is a name for localhost. Only plain pods are
integrated; the queues (ResourceFlavor, ClusterQueue, LocalQueue) are up to the caller.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster import golang
from cluster.controlplane import ControlPlane, Server, free_ports
from cluster.process import ClusterError, output
from cluster.tools import PROGRAMS, tool

NAMESPACE = "kueue-system"
SECRET = "kueue-webhook-server-cert"
_SERVICE = {"name": "kueue-webhook-service", "namespace": NAMESPACE}
_WEBHOOKS = ("--v1-pod", "-kueue-x-k8s-io-")
"""Parts of the paths of the webhooks that are wanted: pods, and Kueue's own kinds."""
_CERTIFICATE_DEADLINE = 30.0


@contextmanager
def kueue(plane: ControlPlane) -> Iterator[Path]:
    """Run Kueue against a control plane that serves; yields its log."""
    certificates = plane.folder / "kueue"
    certificates.mkdir()
    program = PROGRAMS["kueue"]
    config = golang.module_folder(program.module, program.version) / "config" / "components"
    kubectl: list[str | Path] = [tool("kubectl"), "--kubeconfig", plane.kubeconfig]
    webhook_port, health_port, metrics_port = free_ports(3)
    kinds = json.dumps(_kinds(config / "crd" / "bases", webhook_port))
    output([*kubectl, "apply", "--server-side", "-f", "-"], stdin=kinds)
    output([*kubectl, "create", "namespace", NAMESPACE])
    objects = _objects(config / "webhook" / "manifests.yaml", webhook_port)
    output([*kubectl, "apply", "--server-side", "-f", "-"], stdin=json.dumps(objects))
    output([*kubectl, "wait", "--for=condition=Established", "--timeout=60s", "-f", config / "crd" / "bases"])
    settings = plane.folder / "kueue.yaml"
    settings.write_text(yaml.safe_dump(_configuration(certificates, webhook_port, health_port, metrics_port)))
    server = Server(
        [tool("kueue"), f"--config={settings}", "--feature-gates=VisibilityOnDemand=false"],
        plane.folder / "kueue.log",
        {"KUBECONFIG": str(plane.kubeconfig)},
    )
    try:
        _mount_certificate(kubectl, certificates)
        server.wait_for(urllib.request.Request(f"http://127.0.0.1:{health_port}/readyz"))
        yield server.log
    finally:
        server.stop()


def _mount_certificate(kubectl: list[str | Path], folder: Path) -> None:
    deadline = time.monotonic() + _CERTIFICATE_DEADLINE
    while True:
        secret = json.loads(output([*kubectl, "get", "secret", SECRET, "-n", NAMESPACE, "-o", "json"]))
        if data := secret.get("data"):
            break
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Kueue has not made its certificate (Secret {SECRET}) within {_CERTIFICATE_DEADLINE:g} s"
            )
        time.sleep(0.2)
    for name, value in data.items():
        (folder / name).write_bytes(base64.b64decode(value))


def _configuration(certificates: Path, webhook_port: int, health_port: int, metrics_port: int) -> dict[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health_port}"},
        "metrics": {"bindAddress": f"127.0.0.1:{metrics_port}"},
        "webhook": {"host": "127.0.0.1", "port": webhook_port, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"qps": 200, "burst": 400},
        "integrations": {"frameworks": ["pod"]},
    }


def _kinds(folder: Path, port: int) -> dict[str, Any]:
    """Kueue's CRDs; those of several versions are converted by its webhook."""
    items = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))]
    for item in items:
        if len(item["spec"]["versions"]) > 1:
            client = {"service": {**_SERVICE, "path": "/convert", "port": port}}
            webhook = {"clientConfig": client, "conversionReviewVersions": ["v1"]}
            item["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _objects(manifests: Path, port: int) -> dict[str, Any]:
    """Kueue's Secret, its Service, and its webhook configurations less those of integrations that do not run."""
    service = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    items: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}},
        {"apiVersion": "v1", "kind": "Service", "metadata": _SERVICE, "spec": service},
    ]
    for item in yaml.safe_load_all(manifests.read_text()):
        kept = []
        for hook in item["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            if any(part in path for part in _WEBHOOKS):
                kept.append({**hook, "clientConfig": {"service": {**_SERVICE, "path": path, "port": port}}})
        name = f"kueue-{item['metadata']['name']}"
        items.append({**item, "metadata": {"name": name}, "webhooks": kept})
    return {"apiVersion": "v1", "kind": "List", "items": items}
