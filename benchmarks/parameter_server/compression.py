"""Bytes and accuracy on the digits with each compression: three workers, two servers, Synchronous, SGD.

Weights are compressed too. Every configuration is trained on the same five splits. What is compared is the mean
accuracy over their 1800 test rows. Bytes are those on the wire, frames and greetings included, from all workers;
`pushed` are gradients, `pulled` weights, and `both` all of it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from typing import Any

from benchmarks.parameter_server.machine import machine

WORKERS = 3
SERVERS = 2
SEEDS = range(5)
EPOCHS = 20
BATCH = 96
HIDDEN = 256
RATE = 0.1
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "None": {"type": "None"},
    "FP16": {"type": "FP16", "weights": True},
    "Int8": {"type": "Int8", "weights": True},
    "TopK 2%": {"type": "TopK", "ratio": 0.02, "weights": True},
    "TopK 1%": {"type": "TopK", "ratio": 0.01, "weights": True},
    "PowerSGD rank 2": {"type": "PowerSGD", "rank": 2, "weights": True},
}


def spec(name: str) -> Any:
    """The spec of a configuration."""
    from headrace.api.trainingjob import ParameterServer

    return ParameterServer.model_validate(
        {
            "servers": SERVERS,
            "consistency": "Synchronous",
            "optimizer": "SGD",
            "compression": CONFIGURATIONS[name],
        }
    )


def serve(index: int) -> None:
    """One server process; it has a server of its own for each run, and prints their ports."""
    from headrace.training.parameter_server.server import Server, ServerSettings

    servers = [Server(ServerSettings(index, SERVERS, WORKERS, spec(name), 0)) for name in CONFIGURATIONS for _ in SEEDS]
    for server in servers:
        threading.Thread(target=server.run, daemon=True).start()
    print(json.dumps([server.port for server in servers]), flush=True)
    sys.stdin.read()


def work(rank: int, ports: list[list[int]]) -> None:
    """One worker process, for all runs; worker 0 evaluates."""
    from itertools import product

    import torch

    torch.set_num_threads(1)
    for number, (name, seed) in enumerate(product(CONFIGURATIONS, SEEDS)):
        addresses = [f"127.0.0.1:{ports[server][number]}" for server in range(SERVERS)]
        figures = train(name, seed, rank, addresses)
        print(json.dumps([name, figures]), flush=True)
        if rank == 0:
            print(name, seed, figures, file=sys.stderr, flush=True)


def train(name: str, seed: int, rank: int, addresses: list[str]) -> dict[str, float]:
    """One worker's part of one run."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    from headrace.api.trainingjob import Dataset
    from headrace.training.data import Standardization, epoch_order, load, shard, split
    from headrace.training.parameter_server.client import Client

    data = split(load(Dataset(builtin="Digits")), 0.2, seed)
    standardization = Standardization.of(data.train.features)
    inputs = torch.from_numpy(standardization.apply(data.train.features))
    labels = torch.from_numpy(data.train.labels)
    torch.manual_seed(seed)
    sizes = [nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)]
    model = nn.Sequential(*sizes)
    batches = len(labels) // BATCH
    with Client(addresses, model, spec(name), rank, learning_rate=RATE) as client:
        for step in range(client.step, EPOCHS * batches):
            client.pull()
            epoch, batch = divmod(step, batches)
            order = epoch_order(len(labels), seed, epoch)[batch * BATCH : (batch + 1) * BATCH]
            mine = torch.from_numpy(shard(order, rank, WORKERS))
            cross_entropy(model(inputs[mine]), labels[mine]).backward()
            client.push(rows=len(mine))
        client.finish()
        result: dict[str, float] = {
            "pushedPlain": client.pushed.plain,
            "pushedWire": client.pushed.wire,
            "pulledPlain": client.pulled.plain,
            "pulledWire": client.pulled.wire,
        }
        if rank == 0:
            client.wait_for_all(60)
            with torch.no_grad():
                predicted = model(torch.from_numpy(standardization.apply(data.test.features))).argmax(1)
            result["accuracy"] = float((predicted == torch.from_numpy(data.test.labels)).float().mean())
    return result


def main() -> None:
    """Start all, gather what they say."""
    this = [sys.executable, "-m", "benchmarks.parameter_server.compression"]
    servers = [
        subprocess.Popen([*this, "serve", str(index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for index in range(SERVERS)
    ]
    ports = json.dumps([json.loads(server.stdout.readline()) for server in servers if server.stdout])
    workers = [
        subprocess.Popen([*this, "work", str(rank), ports], stdout=subprocess.PIPE, text=True)
        for rank in range(WORKERS)
    ]
    said = [worker.communicate(timeout=3600)[0] for worker in workers]
    for server in servers:
        server.kill()
        server.wait()
    assert all(worker.returncode == 0 for worker in workers), "a worker failed"
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONFIGURATIONS}
    for text in said:
        for line in text.splitlines():
            name, figures = json.loads(line)
            found[name].append(figures)
    plain = _accuracy(found["None"])
    result = {name: _figures(runs, plain) for name, runs in found.items()}
    facts = {"workers": WORKERS, "servers": SERVERS, "seeds": len(SEEDS), "model": f"64-{HIDDEN}-{HIDDEN}-10"}
    print(json.dumps({"benchmark": "parameter_server.compression", **machine(), **facts, "of": result}))


def _accuracy(runs: list[dict[str, float]]) -> float:
    return statistics.mean(run["accuracy"] for run in runs if "accuracy" in run)


def _figures(runs: list[dict[str, float]], plain: float) -> dict[str, float]:
    total = {key: sum(run[key] for run in runs) for key in runs[0] if key != "accuracy"}
    accuracy = _accuracy(runs)
    both = (total["pushedPlain"] + total["pulledPlain"]) / (total["pushedWire"] + total["pulledWire"])
    return {
        "accuracy": round(100 * accuracy, 2),
        "points": round(100 * (accuracy - plain), 2),
        "pushedTimesLess": round(total["pushedPlain"] / total["pushedWire"], 1),
        "pulledTimesLess": round(total["pulledPlain"] / total["pulledWire"], 1),
        "bothTimesLess": round(both, 1),
    }


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        work(int(sys.argv[2]), json.loads(sys.argv[3]))
        os._exit(0)
