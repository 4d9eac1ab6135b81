"""What a router adds to a request: `python -m benchmarks.serving_router [rounds] [--against CHECKOUT]`. Prints one
JSON line.

One predictor (a linear model of 64 inputs and 10 outputs) is asked four ways, in turns, over loopback, one request at
a time: directly; through a relay that only copies bytes, which is the least that a hop costs on this machine; through
a router; and a router whose predictor is gone and that answers with its static response. What the router itself adds
is the difference to the relay. Client, router, relay and predictor share the machine's cores. With `--against` the
router and the predictor of another checkout are asked too, in the same turns: `before` through its router,
`before_direct` its predictor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import uvloop
from onnx import TensorProto, helper, numpy_helper

REQUESTS = 1000
"""Requests of one way in one round."""
CONNECTIONS = 16
"""Connections of the measurement of throughput."""
WAYS = ("direct", "relay", "router", "static")
BEFORE = ("before_direct", "before")


def model(folder: Path) -> None:
    """Write a linear model."""
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 10])],
        initializer=[numpy_helper.from_array(weights, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(folder / "model.onnx")
    )


def chain(folder: Path, name: str, port: int) -> Path:
    """Write a chain of the predictor at `port` and a static response."""
    file = folder / f"{name}.json"
    static = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [10], "data": [0.1] * 10}]}
    spec = {
        "name": "bench",
        "namespace": "default",
        "predictor": {"host": "127.0.0.1", "port": port, "timeout": "10s"},
        "fallback": [{"name": "static", "static": static}],
    }
    file.write_text(json.dumps(spec))
    return file


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def request() -> bytes:
    """One row of 64 numbers as JSON."""
    row = [round(float(value), 3) for value in np.random.default_rng(1).normal(size=64)]
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": row}]}).encode()
    head = f"POST /v2/models/bench/infer HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(port: int, message: bytes, count: int) -> list[float]:
    """Seconds of each of `count` requests on one connection, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"port {port} answered {head!r}")
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        seconds.append(time.perf_counter() - begun)
    writer.close()
    return seconds


async def ready(port: int) -> None:
    """Wait until a server says that it is ready."""
    async with asyncio.timeout(60):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
                status = await reader.readline()
                writer.close()
                if b" 200 " in status:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def milliseconds(seconds: list[float], quantile: float) -> float:
    """A quantile in milliseconds."""
    return round(float(np.quantile(seconds, quantile)) * 1000, 3)


async def measure(rounds: int, against: Path | None) -> dict[str, object]:
    """Run all ways in turns."""
    ways = (*WAYS, *(BEFORE if against else ()))
    *found, nobody = free_ports(len(ways) + 1)
    ports = dict(zip(ways, found, strict=True))
    message = request()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model(folder)

        def start(module: str, *arguments: object, checkout: Path | None = None) -> subprocess.Popen[bytes]:
            environment = {**os.environ, **({"PYTHONPATH": str(checkout)} if checkout else {})}
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)], env=environment, cwd=checkout
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        common = ("--host", "127.0.0.1", "--drain-seconds", 0, "--log-level", "error", "--port")
        between = {}

        def pair(direct: str, through: str, checkout: Path | None) -> None:
            program = ("headrace.serving", "predictor", "--name", "bench", "--storage-uri", f"file://{name}")
            start(*program, *common, ports[direct], checkout=checkout)
            file = chain(folder, through, ports[direct])
            between[through] = start(
                "headrace.serving", "router", "--chain", file, *common, ports[through], checkout=checkout
            )

        pair("direct", "router", None)
        if against:
            pair(*BEFORE, against)
        between["relay"] = start("benchmarks.serving_router.relay", ports["relay"], ports["direct"])
        start("headrace.serving", "router", "--chain", chain(folder, "static", nobody), *common, ports["static"])
        for port in ports.values():
            await ready(port)
        for port in ports.values():
            await ask(port, message, 200)
        latencies: dict[str, list[float]] = {way: [] for way in ways}
        cpu = dict.fromkeys(between, 0.0)
        for _ in range(rounds):
            for way, port in ports.items():
                begun = cpu_seconds(between[way].pid) if way in between else 0.0
                latencies[way] += await ask(port, message, REQUESTS)
                if way in between:
                    cpu[way] += cpu_seconds(between[way].pid) - begun
        rates = {}
        for way, port in ports.items():
            started = time.perf_counter()
            await asyncio.gather(*(ask(port, message, REQUESTS // 4) for _ in range(CONNECTIONS)))
            rates[way] = round(CONNECTIONS * (REQUESTS // 4) / (time.perf_counter() - started))
    p50 = {way: milliseconds(found, 0.5) for way, found in latencies.items()}
    adds = {"router_adds_p50_ms": round(p50["router"] - p50["direct"], 3)}
    if against:
        adds["before_adds_p50_ms"] = round(p50["before"] - p50["before_direct"], 3)
    return {
        "benchmark": "serving_router",
        "rounds": rounds,
        "requests_per_way": rounds * REQUESTS,
        "p5_ms": {way: milliseconds(found, 0.05) for way, found in latencies.items()},
        "p50_ms": p50,
        "p99_ms": {way: milliseconds(found, 0.99) for way, found in latencies.items()},
        **adds,
        "of_which_any_hop_adds_ms": round(p50["relay"] - p50["direct"], 3),
        "cpu_us_per_request": {way: round(spent / (rounds * REQUESTS) * 1e6) for way, spent in cpu.items()},
        f"requests_per_second_{CONNECTIONS}_connections": rates,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_router", description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--against", type=Path, help="another checkout, whose router and predictor are asked too")
    options = parser.parse_args()
    print(json.dumps(uvloop.run(measure(options.rounds, options.against and options.against.resolve()))))


if __name__ == "__main__":
    main()
