"""Who used how much: CPU time of each program from /proc, and what the API server was asked for."""

from __future__ import annotations

import os
import ssl
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

TICK = os.sysconf("SC_CLK_TCK")
QUIET = 0.1
"""Cores used by the API server below which it counts as idle."""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def busy_seconds() -> float:
    """CPU time of the whole machine so far, all cores, without idling and waiting for disks."""
    user, nice, system, _, _, interrupts, soft_interrupts, *_ = (
        int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + interrupts + soft_interrupts) / TICK


def peak_mib(pid: int) -> float:
    """Peak resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


class Account:
    """CPU seconds of each program from now on; `elsewhere` is what the rest of the machine used."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        used = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        return used | {"elsewhere": busy_seconds() - sum(used.values())}

    def close(self) -> dict[str, float]:
        """CPU seconds since the account was opened, by program."""
        return {name: seconds - self._before[name] for name, seconds in self._read().items()}


def requests_served(url: str, token: str, authority: Path) -> Counter[str]:
    """Requests that the API server has answered, by verb and resource (watches and its own are left out)."""
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"})
    context = ssl.create_default_context(cafile=str(authority))
    with urllib.request.urlopen(request, timeout=30, context=context) as response:
        text = response.read().decode()
    served: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        if family.name != "apiserver_request":
            continue
        for sample in family.samples:
            labels = sample.labels
            if sample.name != "apiserver_request_total" or not labels["resource"] or labels["verb"] == "WATCH":
                continue
            name = "/".join(filter(None, (labels["resource"], labels["subresource"])))
            served[f"{labels['verb']} {name}"] += int(sample.value)
    return served


def wait_until_quiet(pid: int, limit: float = 90.0) -> None:
    """Return when a process has been nearly idle for three seconds, or after `limit` seconds.

    An API server that has just started builds its OpenAPI documents and answers the discovery of every controller; that
    is work of a start and of no resource.
    """
    deadline = time.monotonic() + limit
    quiet = 0
    while quiet < 3 and time.monotonic() < deadline:
        before = cpu_seconds(pid)
        time.sleep(1)
        quiet = quiet + 1 if cpu_seconds(pid) - before < QUIET else 0
