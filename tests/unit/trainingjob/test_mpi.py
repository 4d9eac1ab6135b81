"""Launcher MPI as real processes on loopback; a shell script is mpirun: it runs its words on each host of the file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controllers.trainingjob import mpi

MPIRUN = """\
set -e
cut -d: -f1 "$HYDRA_HOST_FILE" | while read host; do
  "$HYDRA_LAUNCHER_EXEC" -x "$host" "$@"
done
"""
"""How Hydra (MPICH, Intel MPI) starts its proxies: LAUNCHER_EXEC -x HOST WORDS."""


def start(folder: Path, workers: int, command: list[str]) -> list[subprocess.Popen[str]]:
    """Workers at 127.0.0.1, 127.0.0.2, …"""
    folder.mkdir(exist_ok=True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    processes = []
    for index in range(workers):
        told: dict[str, Any] = {"index": index, "workers": workers, "slots": 2, "timeout": 20}
        # All are on one machine, so each has a port of its own here; the host's number tells it.
        told |= {"host": "127.0.0.1", "port": port + index} if workers == 1 else {"host": "127.0.1.*", "port": port}
        agent = mpi.agent().replace('create_server(("",', f'create_server(("127.0.1.{index}",')
        environment = os.environ | {
            "HEADRACE_MPI": json.dumps(told),
            "HEADRACE_MPI_AGENT": agent,
            "HEADRACE_RUN_ID": "secret",
            "HEADRACE_MPI_FOLDER": str(folder / "mpi"),
            "WORKER": str(index),
        }
        processes.append(
            subprocess.Popen(
                ["sh", "-c", 'exec python3 -c "$HEADRACE_MPI_AGENT" "$@"', "sh", *command],
                env=environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def test_mpirun_reaches_every_worker_without_ssh_and_all_end_with_it(tmp_path: Path) -> None:
    processes = start(tmp_path, 3, ["sh", "-c", MPIRUN, "mpirun", "echo", "'worker", "$WORKER'"])
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert outputs[0].splitlines() == ["worker $WORKER"] * 3, "the words are quoted as for ssh"
    assert (tmp_path / "mpi" / "hostfile").read_text() == "".join(f"127.0.1.{n} slots=2\n" for n in range(3))

    processes = start(tmp_path, 2, ["sh", "-c", MPIRUN, "mpirun", "echo", "worker", "$WORKER"])
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert outputs[0].splitlines() == ["worker 0", "worker 1"]


def test_a_command_that_fails_anywhere_fails_worker_0_and_stops_the_others(tmp_path: Path) -> None:
    processes = start(tmp_path, 2, ["sh", "-c", MPIRUN, "mpirun", "test", "$WORKER", "=", "0"])
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 143], outputs


def test_who_does_not_know_the_job_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = start(tmp_path, 2, ["env", "HEADRACE_RUN_ID=guess", "sh", "-c", MPIRUN, "mpirun", "true"])
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert processes[0].returncode == 255, outputs
    assert "refused" in outputs[0]
