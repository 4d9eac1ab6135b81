"""Groups of processes on loopback: the trainer's, and those of a bare library."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def run(arguments: list[str], workers: int, folder: Path, **variables: str) -> None:
    """Run `python arguments` once per worker under torchrun's environment, one CPU thread each.

    Raises:
        RuntimeError: one of them failed.
    """
    port = free_port()
    processes = []
    for rank in range(workers):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(workers),
            "RANK": str(rank),
            "HEADRACE_JOB": "benchmark",
            "HEADRACE_STORAGE_URI": f"file://{folder}",
            **variables,
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        )
    for process in processes:
        _, errors = process.communicate(timeout=1200)
        if process.returncode:
            raise RuntimeError(errors.decode()[-2000:])


def trained(trainer: str, settings: dict[str, Any], workers: int, folder: Path) -> dict[str, Any]:
    """Run one of the trainers; what its metrics.json says."""
    told = {"HEADRACE_TRAINER": json.dumps(settings)}
    run(["-m", "headrace.training", trainer], workers, folder, **told)
    said: dict[str, Any] = json.loads((folder / "model" / "metrics.json").read_text())
    return said
