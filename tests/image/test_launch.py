"""`headrace.training.run` on this machine: the function of a test file, as processes that train together."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import headrace.training
from headrace.training.launch import TrainingFailed

SLOPE = 3.0


def fit(run: Any, steps: int, fail_at: int = -1) -> dict[str, Any]:
    """Least squares by gradient descent on data parallel workers; the answer is known."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    inputs = torch.linspace(-1, 1, 20)[run.rank :: run.world_size].unsqueeze(1)
    for step in range(1, steps + 1):
        loss = ((model(inputs) - SLOPE * inputs) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.report(step=step, steps=steps, loss=loss)
        if step == fail_at and run.rank == 1:
            raise ValueError("the data of rank 1 are bad")
    print("slope found")  # noqa: T201 - shows in the caller's output
    run.report(metrics={"loss": float(loss)})
    return {"slope": model.module.weight.item(), "workers": run.world_size}


def test_two_processes_train_a_function_and_hand_its_result_back(tmp_path: Path) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        found = headrace.training.run(
            fit, {"steps": 100}, workers=2, local=True, storage_uri=f"file://{tmp_path}", progress=False
        )
    assert found.value["workers"] == 2
    assert found.value["slope"] == pytest.approx(SLOPE, abs=1e-3)
    assert found.metrics["loss"] < 1e-5
    assert found.job is None
    assert "slope found\n" in out.getvalue()
    assert "step 100 of 100, loss" in out.getvalue()


def test_a_worker_that_fails_ends_the_run_with_its_words() -> None:
    with pytest.raises(TrainingFailed, match="the data of rank 1 are bad"):
        headrace.training.run(fit, {"steps": 50, "fail_at": 20}, workers=2, local=True, progress=False)
