"""Workers forked from a process that has imported torch: a start costs milliseconds instead of seconds.

The process that forks must not have computed anything with torch: OpenMP's threads do not survive a fork. So tests run
`python -m tests.image.<module>` for it, and look at what that leaves behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


def run_module(name: str, folder: Path, *arguments: str, timeout: float = 280) -> str:
    """What `python -m tests.image.<name> <folder> <arguments>` printed; anything but success fails the test."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), root])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", f"tests.image.{name}", str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@dataclass
class Forks:
    """A group of workers; each calls `work` with its environment set and writes to `logs[rank]`."""

    work: Callable[[], None]
    folder: Path
    storage: str
    count: int = 2
    attempt: int = 1
    variables: dict[str, str] = field(default_factory=dict)
    pids: list[int] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)

    @property
    def logs(self) -> list[Path]:
        return [self.folder / f"attempt-{self.attempt}-worker-{rank}.log" for rank in range(self.count)]

    def start(self) -> Forks:
        """Fork all of them."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        self.folder.mkdir(parents=True, exist_ok=True)
        for rank in range(self.count):
            environment = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(self.count),
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "HEADRACE_JOB": "test",
                "HEADRACE_ATTEMPT": str(self.attempt),
                "HEADRACE_STORAGE_URI": self.storage,
                **self.variables,
            }
            pid = os.fork()
            if pid == 0:
                self._child(rank, environment)
            self.pids.append(pid)
        return self

    def _child(self, rank: int, environment: dict[str, str]) -> None:
        code = 1
        try:
            log = os.open(self.logs[rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(environment)
            self.work()
            code = 0
        except SystemExit as end:
            code = int(str(end.code or 0))
        except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def running(self) -> bool:
        """Whether none has ended."""
        return all(self._poll(rank) is None for rank in range(self.count))

    def kill(self, rank: int) -> None:
        """SIGKILL one worker, and wait for all: the others must notice."""
        os.kill(self.pids[rank], signal.SIGKILL)
        self.wait(60)

    def wait(self, timeout: float = 60) -> list[int]:
        """Exit codes in order of rank (negative: the signal); what still runs after `timeout` s fails the test."""
        deadline = time.monotonic() + timeout
        while any(self._poll(rank) is None for rank in range(self.count)):
            if time.monotonic() > deadline:
                for pid in (pid for rank, pid in enumerate(self.pids) if rank not in self.codes):
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"still running after {timeout} s:\n{self.output()}")
            time.sleep(0.002)
        return [self.codes[rank] for rank in range(self.count)]

    def output(self) -> str:
        """The end of what each worker wrote."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in self.logs)

    def _poll(self, rank: int) -> int | None:
        if rank not in self.codes:
            pid, status = os.waitpid(self.pids[rank], os.WNOHANG)
            if pid:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
        return self.codes.get(rank)
