"""Parameter servers and their workers as processes of this machine, each of which may die and be started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Group:
    """Processes of one kind; all starts of one write to the same log.

    Attributes:
        folder: For logs.
        name: Of the kind.
        count: How many.
        arguments: Of the Python interpreter.
        environment: What each is told, by number.
    """

    folder: Path
    name: str
    count: int
    arguments: Sequence[str]
    environment: Callable[[int], dict[str, str]]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start all of them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes = [self._start(index) for index in range(self.count)]

    def restart(self, index: int) -> None:
        """Start one again that ended."""
        assert self.processes[index].poll() is not None
        self.processes[index] = self._start(index)

    def end(self, index: int, number: int = signal.SIGKILL) -> int:
        """Send a signal to one and wait for its end; the exit code."""
        self.processes[index].send_signal(number)
        return self.processes[index].wait(20)

    def wait(self, timeout: float = 240) -> list[int]:
        """Exit codes in order."""
        self.until(lambda: all(process.poll() is not None for process in self.processes), timeout)
        return [process.returncode for process in self.processes]

    def stop(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            process.kill()
            process.wait(20)

    def log(self, index: int) -> str:
        """What one wrote."""
        return (self.folder / f"{self.name}-{index}.log").read_text()

    def lines(self, index: int) -> list[str]:
        """What one wrote, by line."""
        return self.log(index).strip().splitlines()

    def until(self, condition: Callable[[], bool], timeout: float = 150) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def output(self) -> str:
        """The end of what each wrote."""
        return "\n".join(f"--- {self.name} {index}\n{self.log(index)[-3000:]}" for index in range(self.count))

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        with (self.folder / f"{self.name}-{index}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *self.arguments],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | self.environment(index),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )


@dataclass(slots=True)
class Served:
    """A run of servers and workers.

    Attributes:
        folder: For logs.
        spec: topology.parameterServer.
        arguments: Of the workers' Python interpreter.
        count: Workers.
        storage: Storage URI of the run; empty: nothing is saved.
        variables: Environment of all besides.
        own: Environment of the workers besides.
    """

    folder: Path
    spec: dict[str, Any]
    arguments: Sequence[str]
    count: int = 3
    storage: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    addresses: list[str] = field(default_factory=list)
    servers: Group = field(init=False)
    workers: Group = field(init=False)

    def start(self) -> Served:
        """Start servers and workers."""
        number = self.spec.get("servers", 1)
        self.addresses = [f"127.0.0.1:{port}" for port in _free_ports(number)]
        told = {
            "HEADRACE_SERVERS": ",".join(self.addresses),
            "HEADRACE_TOPOLOGY": json.dumps({"type": "ParameterServer", "parameterServer": self.spec}),
            "HEADRACE_STORAGE_URI": self.storage,
            "HEADRACE_RENDEZVOUS_TIMEOUT": "60s",
            **self.variables,
        }

        def server(index: int) -> dict[str, str]:
            mine = {"HEADRACE_SERVER_INDEX": str(index), "HEADRACE_WORKERS": str(self.count)}
            return mine | {"HEADRACE_VERSION_LOG": str(self.folder / f"versions-{index}")} | told

        def worker(index: int) -> dict[str, str]:
            torchrun = {"RANK": str(index), "WORLD_SIZE": str(self.count), "MASTER_ADDR": "unused.invalid"}
            return torchrun | {"HEADRACE_JOB": "test"} | told | self.own

        self.servers = Group(self.folder, "server", number, ("-m", "headrace.training.parameter_server"), server)
        self.workers = Group(self.folder, "worker", self.count, self.arguments, worker)
        self.servers.start()
        self.workers.start()
        return self

    def stop(self) -> None:
        """Kill what still runs."""
        self.workers.stop()
        self.servers.stop()

    def versions(self, index: int) -> list[dict[str, Any]]:
        """A server's log of weights handed out."""
        return [json.loads(line) for line in (self.folder / f"versions-{index}").read_text().splitlines()]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
