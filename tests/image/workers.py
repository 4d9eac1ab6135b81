"""Workers of one run as processes of this machine that meet on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLASSIFIER = ("-m", "headrace.training", "classifier")


@dataclass(slots=True)
class Workers:
    """A group of workers; `logs[rank]` is what the worker wrote.

    Attributes:
        folder: For logs.
        storage: Storage URI of the run.
        count: Number of workers.
        arguments: Of the Python interpreter.
        variables: Environment besides torchrun's and the storage.
    """

    folder: Path
    storage: str
    count: int = 1
    arguments: Sequence[str] = CLASSIFIER
    variables: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    def start(self, own: Sequence[Mapping[str, str]] | None = None) -> Workers:
        """Start all of them, each with its `own` variables."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        self.folder.mkdir(parents=True, exist_ok=True)
        for rank in range(self.count):
            environment = os.environ | {
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(self.count),
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "HEADRACE_JOB": "test",
                "HEADRACE_STORAGE_URI": self.storage,
                **self.variables,
                **(own[rank] if own else {}),
            }
            log = self.folder / f"worker-{rank}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, *self.arguments],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                )
            self.processes.append(process)
            self.logs.append(log)
        return self

    def wait(self, timeout: float = 200) -> list[int]:
        """Exit codes in order of rank; what still runs after `timeout` seconds is killed and fails the test."""
        deadline = time.monotonic() + timeout
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one worker."""
        self.processes[rank].send_signal(number)

    def until(self, condition: Callable[[], bool], timeout: float = 150) -> None:
        """Wait for the condition while all workers run."""
        deadline = time.monotonic() + timeout
        while not condition():
            ended = [process.poll() for process in self.processes]
            assert not any(code is not None for code in ended), f"exit codes {ended}:\n{self.output()}"
            assert time.monotonic() < deadline, f"not within {timeout} s:\n{self.output()}"
            time.sleep(0.01)

    def output(self) -> str:
        """The end of what each worker wrote."""
        return "\n".join(f"--- worker {n}\n{log.read_text()[-3000:]}" for n, log in enumerate(self.logs))

    def last_line(self, rank: int) -> str:
        """The last line of one worker."""
        return self.logs[rank].read_text().strip().splitlines()[-1]


def classifier(**settings: Any) -> dict[str, str]:
    """HEADRACE_CLASSIFIER of a run on the digits."""
    trainer = {"dataset": {"builtin": "Digits"}, "epochs": 40, "hiddenSizes": [64], **settings}
    return {"HEADRACE_CLASSIFIER": json.dumps(trainer)}


def finished_steps(storage: Path) -> list[int]:
    """Steps of finished checkpoints, in order."""
    manifests = (storage / "checkpoints").glob("step-*/manifest.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in manifests)
