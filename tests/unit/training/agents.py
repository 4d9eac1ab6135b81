"""Agents of one job as processes of this machine, with small scripts for training processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPT = """
import json, os, sys, time
from headrace.training.agent.link import Link

rank, attempt = int(os.environ["RANK"]), int(os.environ["HEADRACE_ATTEMPT"])
folder = os.environ["FOLDER"]
variables = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
path = f"{folder}/round-{attempt}-rank-{rank}"
with open(path + ".new", "w") as file:
    json.dump(variables | {"pid": os.getpid()}, file)
os.rename(path + ".new", path)
beats = Link()
if beats.sink: beats.sink('{"step": 5, "loss": "0.1"}')
"""
"""Each process leaves a file that names its round and rank; what follows is a test's own."""


@dataclass(slots=True)
class Agents:
    """The workers of one job.

    Attributes:
        folder: For scripts, logs, and the files of the processes.
        workers: How many.
        body: What a training process does after SCRIPT.
        told: Further members of HEADRACE_AGENT.
        variables: Further environment of an agent, by worker.
    """

    folder: Path
    workers: int
    body: str
    told: dict[str, Any] = field(default_factory=dict)
    variables: dict[int, dict[str, str]] = field(default_factory=dict)
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    port: int = 0
    pods: int = 0

    def start(self, *indexes: int, **told: Any) -> Agents:
        """Start these workers' agents, by default all; again: each is a new pod."""
        if not self.port:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                self.port = sock.getsockname()[1]
        script = self.folder / "train.py"
        script.write_text(SCRIPT + self.body)
        for index in indexes or range(self.workers):
            self.pods += 1
            agent = {"index": index, "workers": self.workers, "port": self.port, **self.told, **told}
            environment = os.environ | {
                "HEADRACE_AGENT": json.dumps(agent),
                "HEADRACE_RUN_ID": "secret",
                "POD_UID": f"pod-{self.pods}",
                "FOLDER": str(self.folder),
                **self.variables.get(index, {}),
            }
            with self.log(index).open("ab") as log:
                self.processes[index] = subprocess.Popen(
                    [sys.executable, "-m", "headrace.training.agent", "--", sys.executable, str(script)],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        return self

    def log(self, index: int) -> Path:
        """What a worker's agent and processes wrote."""
        return self.folder / f"worker-{index}.log"

    def output(self) -> str:
        """All that was written."""
        return "\n".join(f"--- {index}\n{self.log(index).read_text()[-3000:]}" for index in sorted(self.processes))

    def kill(self, index: int, pid: int) -> None:
        """The pod is gone: the agent, and its process with this id."""
        self.processes[index].kill()
        os.kill(pid, signal.SIGKILL)
        self.processes[index].wait()

    def process(self, attempt: int, rank: int) -> dict[str, Any]:
        """What the process of a rank wrote about itself in a round, once it did."""
        path = self.folder / f"round-{attempt}-rank-{rank}"
        self.until(path.exists)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def until(self, condition: Callable[[], bool], timeout: float = 30) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def wait(self, timeout: float = 30) -> dict[int, int]:
        """Exit codes by worker."""
        deadline = time.monotonic() + timeout
        try:
            return {i: process.wait(max(0.1, deadline - time.monotonic())) for i, process in self.processes.items()}
        except subprocess.TimeoutExpired:
            raise AssertionError(self.output()) from None
        finally:
            self.close()

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
