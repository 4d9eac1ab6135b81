"""Seconds to a target loss on the digits, with three workers of which one is slowed five times.

A step computes for real and then sleeps, 20 ms or five times that: the sleep stands for an accelerator's work, so
that the machine's own cores do not decide. `permanent`: worker 2 is slow all the time. `changing`: at any time one
worker is slow, another one every 10 of its steps, which is what shared machines do. SGD; a step of Synchronous has the
three workers' rows, so it gets three times the learning rate (the linear scaling rule of Goyal et al. 2017), and all
kinds move equally far per row.

An observer pulls the weights every 50 ms and computes the loss over all training rows.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.parameter_server.machine import machine

WORKERS = 3
ROWS = 32
"""Of one worker's step."""
STEP = 0.02
SLOWED = 5
TARGET = 0.25
"""Mean cross-entropy over the training rows."""
RATE = 0.05
LIMIT = 120.0
SPELL = 10
KINDS: dict[str, dict[str, Any]] = {
    "Synchronous": {"consistency": "Synchronous"},
    "Synchronous, 1 backup": {"consistency": "Synchronous", "backupWorkers": 1},
    "StaleSynchronous, 16 clocks": {"consistency": "StaleSynchronous", "staleness": 16},
    "StaleSynchronous, 64 clocks": {"consistency": "StaleSynchronous", "staleness": 64},
    "Asynchronous": {"consistency": "Asynchronous"},
}


def network() -> Any:
    """64-64-10, from one seed."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def rows() -> tuple[Any, Any]:
    """Standardized features, and labels, of the training rows."""
    import torch

    from headrace.api.trainingjob import Dataset
    from headrace.training.data import Standardization, load, split

    train = split(load(Dataset(builtin="Digits")), 0.2, 0).train
    inputs = Standardization.of(train.features).apply(train.features)
    return torch.from_numpy(inputs), torch.from_numpy(train.labels)


def worker() -> None:
    """One worker, until it is ended."""
    import torch
    from torch.nn.functional import cross_entropy

    from headrace.training.data import epoch_order, shard
    from headrace.training.environment import Environment
    from headrace.training.parameter_server.client import join

    torch.set_num_threads(1)
    told = Environment.read()
    inputs, labels = rows()
    model = network()
    synchronous = os.environ["KIND"].startswith("Synchronous")
    client = join(told, model, RATE * WORKERS if synchronous else RATE)
    batch, batches = ROWS * WORKERS, len(labels) // (ROWS * WORKERS)
    # All begin together, or the first to have imported torch would be ahead.
    start = Path(os.environ["START"])
    (start.parent / f"there-{told.rank}").touch()
    while not start.exists():
        time.sleep(0.005)
    step = 0
    while True:
        client.pull()
        epoch, number = divmod(step, batches)
        order = epoch_order(len(labels), 0, epoch)[number * batch : (number + 1) * batch]
        mine = torch.from_numpy(shard(order, told.rank, WORKERS))
        cross_entropy(model(inputs[mine]), labels[mine]).backward()
        slow = told.rank == 2 if os.environ["SLOW"] == "permanent" else (step // SPELL) % WORKERS == told.rank
        time.sleep(STEP * (SLOWED if slow else 1))
        client.push(rows=len(mine))
        step += 1


def measure(kind: str, slow: str, folder: Path) -> dict[str, Any]:
    """Seconds from the common start to the target."""
    from torch.nn.functional import cross_entropy

    from headrace.training.parameter_server.observer import Observer
    from tests.image.servers import Served

    folder.mkdir()
    start = folder / "start"
    spec = {"servers": 2, "optimizer": "SGD", **KINDS[kind]}
    own = {"START": str(start), "KIND": kind, "SLOW": slow}
    run = Served(folder, spec, ("-m", "benchmarks.parameter_server.stragglers", "worker"), WORKERS, own=own).start()
    try:
        run.workers.until(lambda: len(list(folder.glob("there-*"))) == WORKERS, 120)
        model = network()
        inputs, labels = rows()
        observer = Observer(run.addresses, model)
        start.touch()
        began = time.monotonic()
        while True:
            version = observer.pull()
            at = time.monotonic() - began
            loss = float(cross_entropy(model(inputs), labels))
            if loss <= TARGET or at > LIMIT:
                break
            time.sleep(0.05)
        observer.close()
        versions = [entry for index in range(2) for entry in run.versions(index) if entry["slowest"] is not None]
        ahead = max(entry["clock"] - entry["slowest"] for entry in versions)
        reached = {"seconds": round(at, 2)} if loss <= TARGET else {"secondsWithout": round(at, 2)}
        return reached | {"updates": version, "furthestAhead": None if kind.startswith("Synchronous") else ahead}
    finally:
        run.stop()


def main() -> None:
    """All kinds, both sorts of slowness."""
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for slow in ("permanent", "changing"):
            for number, kind in enumerate(KINDS):
                found = measure(kind, slow, Path(folder) / f"{slow}-{number}")
                print(slow, kind, found, file=sys.stderr, flush=True)
                result.setdefault(slow, {})[kind] = found
    for kinds in result.values():
        whole = kinds["Synchronous"].get("seconds")
        for item in kinds.values():
            if whole and "seconds" in item:
                item["ofSynchronous"] = round(item["seconds"] / whole, 2)
    facts = {"workers": WORKERS, "servers": 2, "slowed": SLOWED, "targetLoss": TARGET}
    print(json.dumps({"benchmark": "parameter_server.stragglers", **machine(), **facts, "toTarget": result}))


if __name__ == "__main__":
    worker() if len(sys.argv) > 1 else main()
