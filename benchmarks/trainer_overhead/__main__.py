"""What a session costs a training step, and how long a checkpoint holds training up. In the trainer image:

    python -m benchmarks.trainer_overhead [--megabytes 200] [--steps 2000]

prints one JSON line: microseconds per step of `report` and of `due` (with metrics served, TensorBoard logs and
reports as in a job), and seconds of `save` and of the whole checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial


def main() -> None:
    """Run one process as a job has it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="of tensors in a checkpoint")
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    os.environ |= {"HEADRACE_JOB": "bench", "HEADRACE_METRICS_PORT": "9400", "HEADRACE_CHECKPOINT_INTERVAL": "1h"}

    import torch

    import headrace.training

    with (
        tempfile.TemporaryDirectory() as folder,
        headrace.training.session(f"file://{folder}", sink=lambda line: None) as run,
    ):
        model = torch.nn.Linear(256, 256)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.checkpoints.restore({"model": model, "optimizer": optimizer})
        x = torch.randn(64, 256)
        report: list[float] = []
        due: list[float] = []
        begun = time.perf_counter()
        for step in range(arguments.steps):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            report.append(timed(partial(run.report, step=step + 1, steps=arguments.steps, loss=loss)))
            due.append(timed(run.checkpoints.due))
        took = (time.perf_counter() - begun) / arguments.steps
        large = torch.nn.Linear(1024, arguments.megabytes << 8, bias=False)
        saves = []
        for step in range(3):
            run.checkpoints.save(arguments.steps + step, {"large": large})
            run.checkpoints.wait()
            saves.append((run.checkpoints.saved.pause, run.checkpoints.saved.seconds))
        print(
            json.dumps(
                {
                    "stepMicroseconds": round(took * 1e6, 1),
                    "reportMicroseconds": round(statistics.mean(report) * 1e6, 2),
                    "reportMedianMicroseconds": round(statistics.median(report) * 1e6, 2),
                    "dueMicroseconds": round(statistics.mean(due) * 1e6, 2),
                    "checkpointMegabytes": arguments.megabytes,
                    "pauseSeconds": round(min(pause for pause, _ in saves), 4),
                    "checkpointSeconds": round(min(seconds for _, seconds in saves), 3),
                }
            ),
            flush=True,
        )


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
