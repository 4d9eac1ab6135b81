"""Agents with real PyTorch: a killed, a paused and a lost worker, and the sum that one undisturbed run gives."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.unit.training.agents import Agents

STEPS = 60
BODY = f"""
import torch
import torch.distributed as dist
from headrace.training import session

steps = {STEPS}
with session() as run:
    total = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        total.weight.zero_()
        state = run.checkpoints.restore({{"total": total}})
        step = state["step"] if state else 0
        while step < steps:
            part = torch.full((1, 4), float(run.rank + 1))
            dist.all_reduce(part)
            total.weight += part
            step += 1
            if run.checkpoints.due():
                run.checkpoints.save(step, {{"total": total}})
            run.report(step=step, steps=steps, loss=1.0 / step, samples=1)
            open(f"{{folder}}/round-{{attempt}}-step-{{step}}", "w").close()
            time.sleep(0.1)
    print("sum", total.weight.flatten().tolist(), flush=True)
"""


def test_three_workers_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """One process is killed, one is paused, one pod is lost."""
    settings = {
        "HEADRACE_JOB": "test",
        "HEADRACE_STORAGE_URI": f"file://{tmp_path}/run",
        "HEADRACE_CHECKPOINT_INTERVAL": "300ms",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    group = Agents(tmp_path, 3, BODY, {"hangTimeout": 2}, dict.fromkeys(range(3), settings)).start()
    try:
        for attempt, (rank, past) in enumerate([(1, 10), (2, 25), (0, 40)], 1):
            group.until((tmp_path / f"round-{attempt}-step-{past}").exists, 120)
            pid = group.process(attempt, rank)["pid"]
            if attempt == 1:
                os.kill(pid, signal.SIGKILL)
            elif attempt == 2:
                os.kill(pid, signal.SIGSTOP)
            else:
                group.kill(rank, pid)
                group.start(rank)
        assert group.wait(120) == {0: 0, 1: 0, 2: 0}, group.output()
    finally:
        group.close()
    log = group.log(0).read_text()
    assert f"sum {[float(STEPS * 6)] * 4}" in log
    for attempt in (2, 3, 4):
        before, after = (
            [int(path.name.rpartition("-")[2]) for path in tmp_path.glob(f"round-{number}-step-*")]
            for number in (attempt - 1, attempt)
        )
        # Rank 0 saves a step more when it is told to stop, and leaves no file of it.
        assert 1 < min(after) <= max(before) + 2, "it went on from a checkpoint"
    assert "all_reduce" in log, "the stacks show where the others waited for the paused one"
