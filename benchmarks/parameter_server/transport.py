"""A tensor to another process and one of the same size back, which is a push and a pull, over four transports:

rpc       torch.distributed.rpc (TensorPipe), a remote call with a tensor that returns one
gloo      torch.distributed send and recv
threads   the frames of headrace.training.parameter_server.wire, blocking sockets
asyncio   the same bytes with an event loop at the server
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.parameter_server.machine import machine

SIZES = (1, 10, 100)
"""Megabytes one way."""
ROUNDS = {1: 60, 10: 20, 100: 7}
WAYS = ("rpc", "gloo", "threads", "asyncio")


def timed(exchange: Callable[[], Any], megabytes: int) -> float:
    """Median seconds of an exchange, after two that are not counted."""
    durations = []
    for number in range(ROUNDS[megabytes] + 2):
        began = time.perf_counter()
        exchange()
        if number > 1:
            durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def give_back(tensor: Any) -> Any:
    """The remote side of `rpc`."""
    return tensor


def rpc(rank: int, port: int) -> dict[int, float]:
    import torch
    from torch.distributed import rpc

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"tcp://127.0.0.1:{port}", _transports=["uv"])
    rpc.init_rpc(f"peer{rank}", rank=rank, world_size=2, rpc_backend_options=options)
    found = {}
    if rank == 0:
        for size in SIZES:
            tensor = torch.ones(size * 250_000)

            def exchange(tensor: Any = tensor) -> None:
                rpc.rpc_sync("peer1", give_back, args=(tensor,))

            found[size] = timed(exchange, size)
    rpc.shutdown()
    return found


def gloo(rank: int, port: int) -> dict[int, float]:
    import torch
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0, use_libuv=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for size in SIZES:
        tensor = torch.ones(size * 250_000)
        if rank == 0:

            def exchange(tensor: Any = tensor) -> None:
                dist.send(tensor, 1)
                dist.recv(tensor, 1)

            found[size] = timed(exchange, size)
        else:
            for _ in range(ROUNDS[size] + 2):
                dist.recv(tensor, 0)
                dist.send(tensor, 0)
    dist.barrier()
    return found


def threads(rank: int, port: int) -> dict[int, float]:
    from headrace.training.parameter_server.compression import buffer_of
    from headrace.training.parameter_server.wire import Connection, Kind, connect

    if rank == 1:
        with socket.create_server(("127.0.0.1", port)) as listener:
            _ready()
            peer = Connection(listener.accept()[0])
            while (frame := peer.receive(1 << 30)) is not None:
                peer.send(Kind.WEIGHTS, {}, [frame.payload])
        return {}
    return _client(lambda: connect(f"127.0.0.1:{port}", 5), Kind.EXCHANGE, buffer_of)


def asyncio_(rank: int, port: int) -> dict[int, float]:
    from headrace.training.parameter_server.compression import buffer_of
    from headrace.training.parameter_server.wire import Kind, connect

    if rank == 1:
        asyncio.run(_serve(port))
        return {}
    return _client(lambda: connect(f"127.0.0.1:{port}", 5), Kind.EXCHANGE, buffer_of)


async def _serve(port: int) -> None:
    """The same frames, echoed by an event loop: 20 bytes, of which the last 12 are the two lengths."""
    import numpy as np

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        _ready()
        sock, _ = await loop.sock_accept(listener)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = np.empty(0, np.uint8)

    async def fill(view: memoryview) -> bool:
        while len(view):
            count = await loop.sock_recv_into(sock, view)
            if not count:
                return False
            view = view[count:]
        return True

    start = bytearray(20)
    while await fill(memoryview(start)):
        header, payload = int.from_bytes(start[8:12]), int.from_bytes(start[12:20])
        if len(buffer) < header + payload:
            buffer = np.empty(header + payload, np.uint8)
        await fill(buffer[: header + payload].data)
        await loop.sock_sendall(sock, start)
        await loop.sock_sendall(sock, buffer[: header + payload].data)
    sock.close()


def _client(connect: Callable[[], Any], kind: Any, buffer_of: Callable[[Any], Any]) -> dict[int, float]:
    import torch

    connection = connect()
    found = {}
    for size in SIZES:
        payload = [buffer_of(torch.ones(size * 250_000))]

        def exchange(payload: Any = payload) -> None:
            connection.send(kind, {}, payload)
            assert connection.receive(1 << 30) is not None

        found[size] = timed(exchange, size)
    connection.close()
    return found


def _ready() -> None:
    print("ready", flush=True)


def main() -> None:
    """Each way in two processes of its own; the second of them is started first."""
    import subprocess

    result: dict[str, Any] = {}
    for way in WAYS:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.parameter_server.transport", way]
        second = subprocess.Popen([*command, "1", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if way in ("threads", "asyncio") and second.stdout is not None:
            second.stdout.readline()
        first = subprocess.run([*command, "0", str(port)], capture_output=True, check=False, timeout=300)
        said = second.communicate(timeout=60)[1].decode()
        lines = first.stdout.decode().strip().splitlines()
        if first.returncode or not lines:
            reason = (first.stderr.decode() + said).strip().splitlines()
            result[way] = {"failed": reason[-1][:200] if reason else f"exit code {first.returncode}"}
            continue
        seconds = {int(size): value for size, value in json.loads(lines[-1]).items()}
        result[way] = {
            f"{size} MB": {"milliseconds": round(1000 * value, 2), "megabytesPerSecond": round(2 * size / value)}
            for size, value in seconds.items()
        }
    print(json.dumps({"benchmark": "parameter_server.transport", **machine(), "roundTrip": result}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        way = {"rpc": rpc, "gloo": gloo, "threads": threads, "asyncio": asyncio_}[sys.argv[1]]
        print(json.dumps(way(int(sys.argv[2]), int(sys.argv[3]))), flush=True)
        os._exit(0)
    assert threading.current_thread() is threading.main_thread()
    main()
