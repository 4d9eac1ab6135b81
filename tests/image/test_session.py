"""A user's own script: a session, DistributedDataParallel, an optimizer with a schedule, checkpoints, reports."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.image.workers import Workers, finished_steps

SCRIPT = """
import os, sys, time
import torch
from torch.nn.parallel import DistributedDataParallel
import headrace.training

STEPS = 60
reports = open(os.environ["REPORTS"] + os.environ["RANK"], "a")

with headrace.training.session(sink=lambda line: print(line, file=reports, flush=True)) as run:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(8, 1).to(run.device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    state = run.checkpoints.restore(parts)
    print("from", state, flush=True)
    for step in range(state["step"] if state else 0, STEPS):
        generator = torch.Generator().manual_seed(step * run.world_size + run.rank)
        x = torch.randn(16, 8, generator=generator)
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        run.report(step=step + 1, steps=STEPS, loss=loss, samples=len(x))
        if run.checkpoints.due():
            run.checkpoints.save(step + 1, parts, note="any JSON")
        time.sleep(float(os.environ.get("PAUSE", "0")))
    if run.rank == 0:
        weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        open(os.environ["RESULT"], "wb").write(weights)
"""


def workers(tmp_path: Path, name: str, **variables: str) -> Workers:
    settings = {
        "HEADRACE_CHECKPOINT_INTERVAL": "10ms",
        "REPORTS": str(tmp_path / f"{name}-reports-"),
        "RESULT": str(tmp_path / f"{name}-result"),
        **variables,
    }
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = (str(tmp_path / "script.py"),)
    storage = f"file://{tmp_path}/{name}"
    folder = tmp_path / f"logs-{name}-{variables.get('HEADRACE_ATTEMPT', '1')}"
    return Workers(folder, storage, 2, arguments, settings).start()


def test_a_script_resumes_with_all_its_parts_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    undisturbed = workers(tmp_path, "whole")
    assert undisturbed.wait() == [0, 0], undisturbed.output()

    first = workers(tmp_path, "cut", PAUSE="0.05")
    first.until(lambda: finished_steps(tmp_path / "cut")[-1:] >= [25])
    first.signal(0, signal.SIGKILL)
    codes = first.wait(30)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] not in (0, 78), first.output()
    second = workers(tmp_path, "cut", HEADRACE_ATTEMPT="2")
    assert second.wait() == [0, 0], second.output()

    assert "'note': 'any JSON'" in second.logs[1].read_text(), "every worker gets the state"
    assert (tmp_path / "cut-result").read_bytes() == (tmp_path / "whole-result").read_bytes()
    last = json.loads((tmp_path / "cut-reports-0").read_text().splitlines()[-1])
    assert (last["step"], last["steps"], last["percent"], last["attempt"]) == (60, 60, 100, 2)
    assert last["resumedFromStep"] >= 25
    assert last["backend"] == "gloo"
    assert (tmp_path / "cut-reports-1").read_text() == "", "only rank 0 reports"


def test_a_script_stops_when_told_to(tmp_path: Path) -> None:
    group = workers(tmp_path, "stopped", PAUSE="0.5")
    group.until(lambda: len(finished_steps(tmp_path / "stopped")) > 0)
    for rank in (0, 1):
        group.signal(rank, signal.SIGTERM)
    codes = group.wait(15)
    assert codes[0] == 143, group.output()
    assert codes[1] != 0


def test_a_checkpoint_of_another_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    assert (first := workers(tmp_path, "run")).wait() == [0, 0], first.output()
    (tmp_path / "script.py").write_text(SCRIPT.replace("Linear(8, 1)", "Linear(8, 2)"))
    second = Workers(
        tmp_path / "again",
        f"file://{tmp_path}/run",
        1,
        (str(tmp_path / "script.py"),),
        {"REPORTS": str(tmp_path / "again-"), "RESULT": str(tmp_path / "again-result")},
    ).start()
    assert second.wait() == [78], second.output()
    assert second.last_line(0).startswith("error: storage.uri: the checkpoint of step ")
    assert "choose another folder" in second.last_line(0)
