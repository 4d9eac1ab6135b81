"""Workers as processes of this machine: the same script, the same environment, no cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any

from headrace.training.launch.outcome import Outcome, TrainingFailed
from headrace.training.launch.screen import Screen

GRACE = 5.0
"""Seconds for the other workers to end after one has failed."""
LINES = 20


def run_locally(script: str, workers: int, storage_uri: str, topology: str, screen: Screen) -> Outcome:
    """Run the script in `workers` processes that meet on loopback, and wait for them.

    Args:
        script: Its text.
        workers: Processes.
        storage_uri: Folder for checkpoints and the model; empty: nothing is stored.
        topology: JSON of spec.topology.
        screen: Shows what worker 0 writes.

    Raises:
        TrainingFailed: a worker failed; the others were ended.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="headrace-run-") as folder:
        path = Path(folder) / "train.py"
        path.write_text(script)
        processes = [
            _start(path, rank, workers, port, {"HEADRACE_STORAGE_URI": storage_uri, "HEADRACE_TOPOLOGY": topology})
            for rank in range(workers)
        ]
        last: list[deque[str]] = [deque(maxlen=LINES) for _ in processes]
        readers = [
            threading.Thread(target=_read, args=(process, last[rank], screen if rank == 0 else None), daemon=True)
            for rank, process in enumerate(processes)
        ]
        for reader in readers:
            reader.start()
        try:
            failed = _wait(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            for reader in readers:
                reader.join()
    if failed is not None:
        words = "\n".join(last[failed])
        raise TrainingFailed(f"worker {failed} ended with exit code {processes[failed].returncode}:\n{words}")
    metrics = {str(name): float(value) for name, value in (screen.report.get("metrics") or {}).items()}
    return Outcome(screen.value, metrics, screen.report.get("modelUri"), None)


def _start(path: Path, rank: int, workers: int, port: int, told: dict[str, str]) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
        **{name: value for name, value in told.items() if value},
    }
    return subprocess.Popen(
        [sys.executable, str(path)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _read(process: subprocess.Popen[str], last: deque[str], screen: Screen | None) -> None:
    stream: Any = process.stdout
    for line in stream:
        last.append(line.rstrip("\n"))
        if screen is not None:
            screen.line(line.rstrip("\n"))


def _wait(processes: list[subprocess.Popen[str]]) -> int | None:
    """The rank of the first worker that failed, or None where all ended well."""
    ended: dict[int, int] = {}
    changed = threading.Condition()

    def watch(rank: int) -> None:
        code = processes[rank].wait()
        with changed:
            ended[rank] = code
            changed.notify_all()

    for rank in range(len(processes)):
        threading.Thread(target=watch, args=(rank,), daemon=True).start()
    with changed:
        changed.wait_for(lambda: len(ended) == len(processes) or any(ended.values()))
        failed = next((rank for rank, code in ended.items() if code), None)
        if failed is not None:
            # A worker that lost its peer ends too; those that wait for it do not.
            changed.wait_for(lambda: len(ended) == len(processes), timeout=GRACE)
    return failed
