"""How many CPUs this container may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that the cgroup's quota allows, rounded up, at most those of the affinity mask; at least 1.

    Reads cgroup v2's ``cpu.max`` and cgroup v1's ``cpu.cfs_quota_us``; no quota means all CPUs of the mask.
    """
    cpus = len(os.sched_getaffinity(0))
    quota = _quota_v2(root / "cpu.max") or _quota_v1(root / "cpu")
    return max(1, min(cpus, math.ceil(quota))) if quota else cpus


def _quota_v2(file: Path) -> float | None:
    if not file.is_file():
        return None
    quota, period = file.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    file = folder / "cpu.cfs_quota_us"
    if not file.is_file():
        return None
    quota = int(file.read_text())
    return None if quota < 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
