"""What a figure belongs to."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Cores, load when the run began, processor, kernel, and torch's version."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "processor": names[0] if names else platform.machine(),
        "kernel": platform.release(),
        "torch": torch.__version__,
    }
