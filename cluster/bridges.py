"""What a Docker daemon makes in the host's network, and which of it may go when that daemon has stopped.

Daemons of one network namespace share docker0 and the iptables chains whose names begin with DOCKER; a bridge of a
network is its daemon's own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cluster.process import output, succeeds


def links() -> list[str]:
    """Network interfaces of this network namespace; /sys may show those of another."""
    return sorted(line.split(": ")[1].split("@")[0] for line in output(["ip", "-o", "link"]).splitlines())


def forward_policies() -> dict[str, str]:
    """Policy of the FORWARD chain by iptables command."""
    policies = {}
    for command in ("iptables", "ip6tables"):
        if shutil.which(command) and succeeds([command, "-S", "FORWARD"]):
            policies[command] = output([command, "-S", "FORWARD"]).splitlines()[0].split()[2]
    return policies


def bridges(before: Collection[str], networks: Collection[str], *, shared: bool) -> list[str]:
    """Bridges of one daemon.

    Args:
        before: Interfaces that existed before it was started.
        networks: Ids of its networks.
        shared: Another daemon runs, so a new bridge can be that one's.
    """
    new = [name for name in links() if name not in before and name.startswith(("docker", "br-"))]
    return [name for name in new if not shared or any(name == f"br-{network}" for network in networks)]


def other_daemons(ours: int | None) -> list[int]:
    """Pids of the dockerds of this network namespace, without `ours`."""
    here = os.readlink("/proc/self/ns/net")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, namespace = (process / "comm").read_text().strip(), os.readlink(process / "ns" / "net")
        except OSError:  # It has ended, or is somebody else's.
            continue
        if name == "dockerd" and namespace == here and int(process.name) != ours:
            found.append(int(process.name))
    return found


def remove(gone: Sequence[str], policies: Mapping[str, str], *, shared: bool) -> list[str]:
    """Take away the bridges and the iptables rules that a stopped dockerd leaves, and nobody else's.

    Args:
        gone: Its bridges.
        policies: The FORWARD chain's before, by iptables command.
        shared: Another daemon runs; its rules stand in the same chains.
    """
    for bridge in gone:
        output(["ip", "link", "delete", bridge])
    for command, policy in policies.items():
        rules = output([f"{command}-save"]).splitlines()
        kept = [line for line in rules if not any(name in line for name in gone) and (shared or "DOCKER" not in line)]
        output([f"{command}-restore"], stdin="\n".join(kept) + "\n")
        if not shared:
            output([command, "-P", "FORWARD", policy])
    return [f"removed {', '.join(gone)} and their iptables rules"] if gone else []
