"""The workers of an MPI job, without ssh: the standard library of Python 3.8 or later, and nothing of Headrace.

Its text travels in an environment variable and runs in images of anybody (`controllers.trainingjob.mpi`). Each worker
answers at a port; what knows the job's uid may have a command run there. Worker 0 waits for all, writes a hostfile and
a program that stands in for ssh, tells Open MPI, MPICH and Intel MPI about both, and runs the job's command. When that
ends, so do the others.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any

FOLDER = os.environ.get("HEADRACE_MPI_FOLDER", "/tmp/headrace-mpi")
FRAME = struct.Struct("!cI")
INTERRUPTED = 143


def main(arguments: list[str]) -> int:
    """Be a worker, or with --rsh run a command on another one; the exit code."""
    told: dict[str, Any] = json.loads(os.environ["HEADRACE_MPI"])
    if arguments[:1] == ["--rsh"]:
        return run_on(told, *parse_rsh(arguments[1:]))
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(INTERRUPTED))
    finished: list[int] = []
    done = threading.Event()
    server = socket.create_server(("", told["port"]))
    threading.Thread(target=accept, args=(server, finished, done), daemon=True).start()
    if told["index"]:
        done.wait()
        return finished[0]
    return lead(told, arguments)


def lead(told: dict[str, Any], command: list[str]) -> int:
    """Worker 0: wait for the others, run the command, end the others."""
    hosts = hosts_of(told)
    deadline = time.monotonic() + told["timeout"]
    for host in hosts[1:]:
        while True:
            try:
                socket.create_connection((host, told["port"]), 5).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    sys.stderr.write(f"error: worker {host} did not come within {told['timeout']} s: {error}\n")
                    return 1
                time.sleep(0.2)
    try:
        code = subprocess.run(command, env={**os.environ, **prepare(hosts, told["slots"])}, check=False).returncode
    except OSError as error:
        sys.stderr.write(f"error: {command[0]} cannot be started: {error}; correct command\n")
        code = 78
    code = 128 - code if code < 0 else code
    for host in hosts[1:]:
        # Perhaps it is gone already.
        with contextlib.suppress(OSError), socket.create_connection((host, told["port"]), 5) as connection:
            send(connection, b"f", json.dumps([token(), 0 if code == 0 else INTERRUPTED]).encode())
            connection.recv(1)
    return code


def prepare(hosts: list[str], slots: int) -> dict[str, str]:
    """Write the hostfiles and what stands in for ssh; the variables by which the MPI libraries find them."""
    os.makedirs(FOLDER, exist_ok=True)
    agent, rsh = os.path.join(FOLDER, "agent.py"), os.path.join(FOLDER, "rsh")
    openmpi, hydra = os.path.join(FOLDER, "hostfile"), os.path.join(FOLDER, "hostfile.hydra")
    for path, text in (
        (agent, os.environ["HEADRACE_MPI_AGENT"]),
        (rsh, f'#!/bin/sh\nexec python3 {agent} --rsh "$@"\n'),
        (openmpi, "".join(f"{host} slots={slots}\n" for host in hosts)),
        (hydra, "".join(f"{host}:{slots}\n" for host in hosts)),
    ):
        with open(path, "w") as file:
            file.write(text)
    os.chmod(rsh, 0o755)
    return {
        "HEADRACE_HOSTFILE": openmpi,
        "OMPI_MCA_plm_rsh_agent": rsh,
        "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
        "OMPI_MCA_orte_default_hostfile": openmpi,
        "PRTE_MCA_plm_ssh_agent": rsh,
        "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
        "PRTE_MCA_prte_default_hostfile": openmpi,
        "HYDRA_LAUNCHER": "rsh",
        "HYDRA_LAUNCHER_EXEC": rsh,
        "HYDRA_HOST_FILE": hydra,
        "I_MPI_HYDRA_BOOTSTRAP": "rsh",
        "I_MPI_HYDRA_BOOTSTRAP_EXEC": rsh,
        "I_MPI_HYDRA_HOST_FILE": hydra,
    }


def hosts_of(told: dict[str, Any]) -> list[str]:
    return [told["host"].replace("*", str(index)) for index in range(told["workers"])]


def token() -> str:
    return os.environ.get("HEADRACE_RUN_ID", "")


def parse_rsh(arguments: list[str]) -> tuple[str, str]:
    """Host and command, as ssh takes them: options first, and the words of the command joined for a shell."""
    words = list(arguments)
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option in ("-l", "-o", "-p", "-i") and words:
            words.pop(0)
    if len(words) < 2:
        raise SystemExit("error: rsh HOST COMMAND")
    return words[0], " ".join(words[1:])


def run_on(told: dict[str, Any], host: str, command: str) -> int:
    """Run a command on another worker, with its output here; its exit code."""
    connection = socket.create_connection((host.rpartition("@")[2], told["port"]), 30)
    connection.settimeout(None)
    with connection:
        send(connection, b"c", json.dumps([token(), command]).encode())
        while True:
            kind, data = receive(connection)
            if kind == b"x":
                return int(data)
            if kind == b"":
                sys.stderr.write(f"error: the connection to {host} ended\n")
                return 255
            stream = sys.stdout if kind == b"o" else sys.stderr
            stream.buffer.write(data)
            stream.buffer.flush()


def accept(server: socket.socket, finished: list[int], done: threading.Event) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=answer, args=(connection, finished, done), daemon=True).start()


def answer(connection: socket.socket, finished: list[int], done: threading.Event) -> None:
    """Do what one connection asks for."""
    with connection:
        kind, data = receive(connection)
        if kind == b"":
            return  # worker 0 only looked whether this one is there
        said, content = json.loads(data)
        if not hmac.compare_digest(str(said).encode(), token().encode()):
            sys.stderr.write("a connection that is of no worker of this job was refused\n")
            return
        if kind == b"f":
            finished.append(int(content))
            done.set()
        elif kind == b"c":
            run(connection, str(content))


def run(connection: socket.socket, command: str) -> None:
    """Run a command; it ends when the connection does."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    lock = threading.Lock()
    readers = [
        threading.Thread(target=forward, args=(stream, kind, connection, lock), daemon=True)
        for stream, kind in ((process.stdout, b"o"), (process.stderr, b"e"))
    ]
    for reader in readers:
        reader.start()
    threading.Thread(target=watch, args=(connection, process), daemon=True).start()
    code = process.wait()
    for reader in readers:
        reader.join()
    with lock, contextlib.suppress(OSError):  # perhaps nobody waits for it any more
        send(connection, b"x", str(128 - code if code < 0 else code).encode())


def watch(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    try:
        gone = not connection.recv(1)
    except OSError:
        gone = True
    if gone and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def forward(stream: Any, kind: bytes, connection: socket.socket, lock: threading.Lock) -> None:
    while True:
        data = os.read(stream.fileno(), 65536)
        if not data:
            return
        with lock:
            try:
                send(connection, kind, data)
            except OSError:
                return


def send(connection: socket.socket, kind: bytes, data: bytes) -> None:
    connection.sendall(FRAME.pack(kind, len(data)) + data)


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    """A frame; an empty kind at the end of the connection."""
    head = exactly(connection, FRAME.size)
    if head is None:
        return b"", b""
    kind, length = FRAME.unpack(head)
    data = exactly(connection, length)
    return (b"", b"") if data is None else (kind, data)


def exactly(connection: socket.socket, length: int) -> bytes | None:
    data = b""
    while len(data) < length:
        more = connection.recv(min(65536, length - len(data)))
        if not more:
            return None
        data += more
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
