"""A training that depends on everything a restart might lose, run once undisturbed and once killed ten times.

Dropout draws from torch's generator, noise from NumPy's and Python's, each worker its own; rows come shuffled; Adam and
a schedule have state. `python -m tests.image.survival <folder>` prints the weights' digests of both runs.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import struct
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import headrace.training
from headrace.training.batches import Batches
from tests.image.forks import Forks

ROWS, EPOCHS, BATCH = 200, 20, 10
KILLS, SEED = 10, 20261125
shared = mmap.mmap(-1, 16)
"""Step of each worker, seen by the process that forked them."""


def train() -> None:
    """One worker."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    with headrace.training.session() as run:
        rank = run.rank
        torch.manual_seed(rank), np.random.seed(rank), random.seed(rank)
        data = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(1))
        net = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(16, 1)
        )
        model = DistributedDataParallel(net)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ROWS // BATCH * EPOCHS)
        batches = Batches(ROWS, BATCH, rank=rank, world_size=run.world_size, seed=3, epochs=EPOCHS)
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "batches": batches}
        run.checkpoints.restore(parts)
        for rows in batches:
            x = data[torch.from_numpy(rows)] + torch.from_numpy(np.random.randn(len(rows), 8).astype(np.float32)) * 0.1
            x += random.random() * 0.01
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            run.report(step=batches.step, steps=batches.steps, loss=loss, samples=len(rows))
            if run.checkpoints.due():
                run.checkpoints.save(batches.step, parts)
            shared[8 * rank : 8 * rank + 8] = struct.pack("q", batches.step)
        weights = b"".join(parameter.detach().numpy().tobytes() for parameter in net.parameters())
        Path(os.environ["RESULT"] + str(rank)).write_text(hashlib.sha256(weights).hexdigest())


def steps() -> list[int]:
    """The step of each worker."""
    return [int(item) for item in struct.unpack("qq", shared[:16])]


def digests(folder: Path) -> list[str]:
    return [(folder / f"digest-{rank}").read_text() for rank in (0, 1)]


def main(folder: Path) -> None:
    """Run both and print what came of them as JSON."""
    variables = {"HEADRACE_CHECKPOINT_INTERVAL": "5ms", "RESULT": f"{folder}/whole/digest-"}
    whole = Forks(train, folder / "whole", f"file://{folder}/whole/storage", variables=variables).start()
    assert whole.wait() == [0, 0], whole.output()

    dice = random.Random(SEED)
    last = ROWS // BATCH * EPOCHS
    moments = sorted(dice.sample(range(10, last - 20), KILLS))
    variables["RESULT"] = f"{folder}/killed/digest-"
    resumed: list[str] = []
    for attempt, moment in enumerate(moments, 1):
        shared[:16] = bytes(16)
        group = Forks(train, folder / "killed", f"file://{folder}/killed/storage", 2, attempt, variables).start()
        while group.running() and max(steps()) < moment:
            time.sleep(0.0005)
        time.sleep(dice.uniform(0, 0.02))
        assert group.running(), group.output()
        group.kill(dice.randrange(2))
        resumed += [line for line in group.logs[0].read_text().splitlines() if "resumed" in line][:1]
    group = Forks(train, folder / "killed", f"file://{folder}/killed/storage", 2, KILLS + 1, variables).start()
    assert group.wait() == [0, 0], group.output()
    print(  # noqa: T201 - the caller reads it
        json.dumps({"whole": digests(folder / "whole"), "killed": digests(folder / "killed"), "resumed": len(resumed)})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
