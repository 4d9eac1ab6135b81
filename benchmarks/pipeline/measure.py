"""Four processes of a pipeline whose stages take a fixed time; the parent starts them and collects what rank 0 saw."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

STAGES = 4
MICROBATCHES = (1, 2, 4, 8, 16)
FORWARD, BACKWARD = 0.010, 0.020
STEPS = 10
"""Of which the fastest counts: what else the machine does only adds."""
SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B")


def expected(schedule: str, microbatches: int) -> float:
    """Share of time in which a process waits, by the formula."""
    chunks = 2 if schedule == "Interleaved1F1B" else 1
    return (STAGES - 1) / (chunks * microbatches + STAGES - 1)


def worker() -> None:
    """One stage, or two."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed import pipelining

    from headrace.training.strategy.waiting import for_every_message

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    class Busy(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, entering: Any, share: float) -> Any:
            ctx.share = share
            time.sleep(FORWARD * share)
            return entering * 1.0

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            time.sleep(BACKWARD * ctx.share)
            return gradient * 1.0, None

    class Stage(nn.Module):  # type: ignore[misc]
        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share
            self.weight = nn.Parameter(torch.ones(16))

        def forward(self, entering: Any) -> Any:
            return Busy.apply(entering * self.weight, self.share)

    found: dict[str, dict[str, float]] = {}
    example = torch.zeros(1, 16)
    for schedule in SCHEDULES:
        chunks = 2 if schedule == "Interleaved1F1B" else 1
        for microbatches in MICROBATCHES:
            if chunks == 2 and microbatches % STAGES:
                continue  # Interleaving goes round by round of as many microbatches as stages.
            stages = [
                pipelining.PipelineStage(
                    Stage(1 / chunks),
                    rank + chunk * STAGES,
                    STAGES * chunks,
                    torch.device("cpu"),
                    input_args=(example,),
                    output_args=(example,),
                )
                for chunk in range(chunks)
            ]
            kind = getattr(pipelining, f"Schedule{schedule}")
            pipe = kind(
                stages if chunks == 2 else stages[0],
                microbatches,
                loss_fn=lambda outputs, target: outputs.sum(),
            )
            batch = torch.zeros(microbatches, 16)
            seconds: list[float] = []
            for _ in range(STEPS):
                dist.barrier()
                started = time.perf_counter()
                with for_every_message():
                    if rank == 0:
                        pipe.step(batch)
                    elif rank == STAGES - 1:
                        pipe.step(target=batch, losses=[])
                    else:
                        pipe.step()
                dist.barrier()
                seconds.append(time.perf_counter() - started)
            busy = microbatches * (FORWARD + BACKWARD)
            found.setdefault(schedule, {})[str(microbatches)] = 1 - busy / min(seconds[1:])
    if rank == 0:
        sys.stdout.write(json.dumps(found) + "\n")
    dist.destroy_process_group()


def main() -> None:
    """Start the stages."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    processes = []
    for rank in range(STAGES):
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(STAGES), "RANK": str(rank)}
        command = [sys.executable, "-m", "benchmarks.pipeline.measure", "worker"]
        environment = os.environ | told | {"GLOO_SOCKET_IFNAME": "lo"}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"stages ended with {[process.returncode for process in processes]}")
    measured = json.loads(outputs[0].splitlines()[-1])
    bubbles = {
        schedule: {
            microbatches: {"measured": round(bubble, 3), "formula": round(expected(schedule, int(microbatches)), 3)}
            for microbatches, bubble in by_microbatches.items()
        }
        for schedule, by_microbatches in measured.items()
    }
    sys.stdout.write(json.dumps({"stages": STAGES, "bubble": bubbles}) + "\n")


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
