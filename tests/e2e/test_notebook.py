"""`headrace.training.run` from outside of the cluster: a function trains in it, and its result comes back."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import pytest

import headrace.training
from cluster.kubectl import Kube, wait_for
from headrace.training.launch import TrainingFailed

REQUESTS = {"requests": {"cpu": "100m", "memory": "300Mi"}, "limits": {"memory": "1Gi"}}
SLOPE = 3.0


def fit(run: Any, steps: int) -> dict[str, Any]:
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
    print("slope found")  # noqa: T201 - shows in the caller's output
    run.report(metrics={"loss": float(loss)})
    return {"slope": model.module.weight.item(), "workers": run.world_size}


def broken(run: Any) -> None:
    raise ValueError(f"rank {run.rank} has no data")


def test_a_function_trains_in_the_cluster_and_its_result_comes_back(
    kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    out = io.StringIO()
    with redirect_stdout(out):
        found = headrace.training.run(
            fit, {"steps": 100}, workers=2, name="fit", namespace=kube.namespace, resources=REQUESTS, progress=False
        )
    assert found.value["workers"] == 2
    assert found.value["slope"] == pytest.approx(SLOPE, abs=1e-3)
    assert found.metrics["loss"] < 1e-5
    assert "slope found\n" in out.getvalue()
    assert "def fit(" in kube.get("configmap", "fit")["data"]["train.py"]
    kube.run("delete", "trainingjob", "fit")
    wait_for(
        "its script goes with it", lambda: not kube.run("get", "configmap", "fit", "--ignore-not-found"), seconds=30
    )


def test_a_function_that_fails_says_why(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    with redirect_stdout(io.StringIO()), pytest.raises(TrainingFailed, match="rank 0 has no data"):
        headrace.training.run(
            broken,
            name="broken",
            namespace=kube.namespace,
            resources=REQUESTS,
            restart_policy={"maxRestarts": 0},
            progress=False,
        )
