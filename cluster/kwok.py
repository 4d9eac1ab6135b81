"""Controllers, a scheduler and simulated nodes beside a bare control plane: pods «run» without containers.

    plane = ControlPlane(folder); plane.start()
    with simulated_nodes(plane, count=30):
        ...

The nodes lie in zones a, b and c by turns. Used by benchmarks, where thousands of pods are to be had on one machine.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.controlplane import ControlPlane, Server, free_ports
from cluster.features import feature_gates_flag
from cluster.process import output
from cluster.tools import tool, tools

ZONES = ("a", "b", "c")

_STAGES = """\
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node-ready}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
    - {key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: NotIn, values: ["True"]}
  next:
    statusTemplate: |
      conditions:
      - type: Ready
        status: "True"
        reason: Simulated
        message: simulated by kwok
        lastHeartbeatTime: {{ Now | Quote }}
        lastTransitionTime: {{ Now | Quote }}
      phase: Running
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-running}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.phase, operator: In, values: [Pending]}
  next:
    statusTemplate: |
      {{ $now := Now }}
      conditions:
      {{ range (list "Initialized" "Ready" "ContainersReady") }}
      - {type: {{ . }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
      {{ end }}
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        ready: true
        restartCount: 0
        state: {running: {startedAt: {{ $now | Quote }}}}
      {{ end }}
      phase: Running
      startTime: {{ $now | Quote }}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-gone}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: Exists}
  next: {delete: true}
"""
"""What the simulated nodes do: be ready, have every pod running at once, and let go of those that are deleted."""


def node(number: int) -> dict[str, object]:
    """A simulated node of 64 CPUs and 256 GiB."""
    capacity = {"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "1Ti"}
    name = f"simulated-{number}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": ZONES[number % len(ZONES)],
                "topology.kubernetes.io/region": "local",
            },
        },
        "status": {"allocatable": capacity, "capacity": capacity},
    }


@contextmanager
def simulated_nodes(plane: ControlPlane, count: int) -> Iterator[dict[str, int]]:
    """Run kube-controller-manager, kube-scheduler and kwok against a control plane that serves, with `count` nodes.

    Yields the process ids of the three, by program.
    """
    tools(["kube-controller-manager", "kube-scheduler", "kwok"])
    manager_port, scheduler_port, kwok_port = free_ports(3)
    fast = ["--kube-api-qps=1000", "--kube-api-burst=2000", "--leader-elect=false", feature_gates_flag()]
    kubeconfig = f"--kubeconfig={plane.kubeconfig}"
    pids: dict[str, int] = {}
    with ExitStack() as stack:

        def serve(name: str, port: int, scheme: str, flags: Sequence[str | Path], **environment: str) -> None:
            server = Server([tool(name), *flags], plane.folder / f"{name}.log", environment)
            stack.callback(server.stop)
            pids[name] = server.pid
            if scheme == "http":
                server.wait_for(urllib.request.Request(f"http://127.0.0.1:{port}/healthz"))

        serve(
            "kube-controller-manager",
            manager_port,
            "https",
            [
                kubeconfig,
                f"--secure-port={manager_port}",
                "--bind-address=127.0.0.1",
                f"--service-account-private-key-file={plane.service_account_key}",
                f"--root-ca-file={plane.certificate_authority}",
                f"--cert-dir={plane.folder / 'manager-pki'}",
                *fast,
            ],
        )
        serve(
            "kube-scheduler",
            scheduler_port,
            "https",
            [
                kubeconfig,
                f"--secure-port={scheduler_port}",
                "--bind-address=127.0.0.1",
                f"--cert-dir={plane.folder / 'scheduler-pki'}",
                *fast,
            ],
        )
        stages = plane.folder / "kwok.yaml"
        stages.write_text(_STAGES)
        serve(
            "kwok",
            kwok_port,
            "http",
            [
                kubeconfig,
                f"--config={stages}",
                "--node-lease-duration-seconds=40",
                "--v=ERROR",
                "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                f"--server-address=127.0.0.1:{kwok_port}",
            ],
            # It stands for machines elsewhere: what it takes of this one is to be little. Less work for its collector.
            GOGC="400",
        )
        nodes = {"apiVersion": "v1", "kind": "List", "items": [node(number) for number in range(count)]}
        kubectl: list[str | Path] = [tool("kubectl"), "--kubeconfig", plane.kubeconfig]
        output([*kubectl, "create", "-f", "-"], stdin=json.dumps(nodes))
        output([*kubectl, "wait", "--for=condition=Ready", "node", "--all", "--timeout=120s"])
        yield pids
