"""The pod network of offline nodes: a CNI configuration on each node for its own podCIDR, and routes to the others'.

The routes are kept by a service of the node image (`node/headrace-routes`), which reads the list that is written here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cluster import host
from cluster.process import ClusterError

POD_SUBNET = "10.244.0.0/16"

_SCRIPT = """\
set -eu
mkdir -p /etc/headrace /etc/cni/net.d
cat > /etc/headrace/routes.part <<'END'
{routes}END
mv /etc/headrace/routes.part /etc/headrace/routes
cat > /etc/cni/net.d/10-headrace.conflist.part <<'END'
{conflist}
END
mv /etc/cni/net.d/10-headrace.conflist.part /etc/cni/net.d/10-headrace.conflist
"""


def set_up(nodes: list[str], kubectl: Callable[..., str]) -> None:
    """Write the configuration of every node. The podCIDRs are those that the controller manager gave to the nodes."""
    pod_ranges = _pod_ranges(nodes, kubectl)
    routes = "".join(f"{node} {pod_range}\n" for node, pod_range in pod_ranges.items())

    def write(node: str) -> None:
        script = _SCRIPT.format(routes=routes, conflist=json.dumps(_conflist(pod_ranges[node])))
        host.docker("exec", node, "sh", "-c", script)

    with ThreadPoolExecutor() as executor:
        list(executor.map(write, nodes))


def _pod_ranges(nodes: list[str], kubectl: Callable[..., str]) -> dict[str, str]:
    """podCIDR by node; the controller manager gives it to a node a moment after it has joined."""
    template = '{range .items[*]}{.metadata.name} {.spec.podCIDR}{"\\n"}{end}'
    deadline = time.monotonic() + 60
    while True:
        words = [line.split() for line in kubectl("get", "nodes", "-o", f"jsonpath={template}").splitlines()]
        ranges = {line[0]: line[1] for line in words if len(line) == 2}
        if ranges.keys() >= set(nodes):
            return ranges
        if time.monotonic() > deadline:
            raise ClusterError(f"nodes without a podCIDR: {', '.join(set(nodes) - ranges.keys())}; see the log of kind")
        time.sleep(0.5)


def _conflist(pod_range: str) -> dict[str, object]:
    return {
        "cniVersion": "0.4.0",
        "name": "headrace",
        "plugins": [
            {
                "type": "ptp",
                # Pods keep their address on the way to other nodes, or no NetworkPolicy would know them.
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    # In /run, so that the addresses of pods that a restart ended are free again.
                    "dataDir": "/run/cni-ipam-state",
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "ranges": [[{"subnet": pod_range}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
