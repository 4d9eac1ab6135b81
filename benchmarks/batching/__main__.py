"""What dynamic batching gains: `python -m benchmarks.batching [rounds]`. Prints one JSON line.

The same model (a random forest of scikit-learn, 100 trees on the digits, as skops) in two predictors, one of which runs
requests together (at most 32 rows, 5 ms). Both are asked for one row at a time over loopback by the same number of
clients at once, in turns, and alone. Clients and predictors share the machine's cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import numpy as np
import skops.io
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

SECONDS = 3.0
"""Length of one way in one round."""
CLIENTS = (1, 32)
WAYS = {"each by itself": (), "together": ("--batch-size", "32", "--batch-latency", "5ms")}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def until_ready(session: aiohttp.ClientSession, port: int) -> None:
    """Wait for a predictor."""
    async with asyncio.timeout(120):
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/v2/health/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def load(session: aiohttp.ClientSession, port: int, clients: int, body: bytes) -> list[float]:
    """Seconds of each answer to that many clients for `SECONDS`."""
    latencies: list[float] = []
    end = time.perf_counter() + SECONDS

    async def client() -> None:
        while (begun := time.perf_counter()) < end:
            async with session.post(f"http://127.0.0.1:{port}/v2/models/forest/infer", data=body) as response:
                await response.read()
                assert response.status == 200, await response.text()
            latencies.append(time.perf_counter() - begun)

    await asyncio.gather(*(client() for _ in range(clients)))
    return latencies


async def measure(ports: dict[str, int], rounds: int, body: bytes) -> dict[str, dict[str, float]]:
    """Figures of each way and number of clients."""
    found: dict[str, list[float]] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for port in ports.values():
            await until_ready(session, port)
        for _ in range(rounds):
            for clients in CLIENTS:
                for way, port in ports.items():
                    found.setdefault(f"{clients} clients, {way}", []).extend(await load(session, port, clients, body))
    return {
        name: {
            "requests_per_second": round(len(latencies) / (SECONDS * rounds), 1),
            "p50_ms": round(1000 * float(np.percentile(latencies, 50)), 2),
            "p99_ms": round(1000 * float(np.percentile(latencies, 99)), 2),
        }
        for name, latencies in found.items()
    }


def main(arguments: Sequence[str]) -> None:
    """Train, serve, measure, print."""
    rounds = int(arguments[0]) if arguments else 3
    images, labels = load_digits(return_X_y=True)
    row = {"name": "input", "shape": [1, 64], "datatype": "FP32", "data": images[0].tolist()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        skops.io.dump(RandomForestClassifier(100, random_state=0).fit(images, labels), folder / "model.skops")
        ports = {}
        for way, options in WAYS.items():
            ports[way] = free_port()
            command = [sys.executable, "-m", "headrace.serving", "predictor", "--name", "forest", "--host", "127.0.0.1"]
            command += ["--model-format", "ScikitLearn", "--storage-uri", f"file://{folder}"]
            command += ["--port", str(ports[way]), "--drain-seconds", "0", "--log-level", "warning", *options]
            predictor = subprocess.Popen(command)
            stack.callback(predictor.wait)
            stack.callback(predictor.terminate)
        figures = asyncio.run(measure(ports, rounds, json.dumps({"inputs": [row]}).encode()))
    sys.stdout.write(
        json.dumps({"benchmark": "batching", "cpus": os.cpu_count(), "python": platform.python_version(), **figures})
        + "\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
