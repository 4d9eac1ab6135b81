"""Parameter servers and workers as real processes on loopback: what users are promised of each kind of consistency."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.image.servers import Served

WORKERS = 3
SCRIPT = """
import json, os, time
import numpy, torch
import headrace.training

STEPS = int(os.environ.get("STEPS", "40"))
ROWS = 64


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 4))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(ROWS, 16, generator=generator)
    return features, (features[:, :4] + features[:, 4:8]).argmax(1)


with headrace.training.session() as run:
    model = network()
    client = run.parameter_server(model, learning_rate=0.1)
    print("begins at", client.step, flush=True)
    for step in range(client.step, STEPS):
        client.pull()
        features, labels = batch(step)
        # 64 rows on 3 workers: 22, 21 and 21, so that weighing by rows matters.
        mine = torch.from_numpy(numpy.array_split(numpy.arange(ROWS), run.world_size)[run.rank])
        torch.nn.functional.cross_entropy(model(features[mine]), labels[mine]).backward()
        client.push(rows=len(mine))
        run.report(step=step + 1, steps=STEPS)
        print("step", step + 1, flush=True)
        time.sleep(float(os.environ.get(f"PAUSE_{run.rank}", "0")))
    client.finish()
    if run.rank == 0:
        client.wait_for_all()
        torch.save([p.detach() for p in model.parameters()], os.environ["RESULT"])
        print(json.dumps(client.status()), flush=True)
"""


Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a run of the script, or of other arguments of Python; all are ended after the test."""
    runs: list[Served] = []

    def begin(spec: dict[str, Any], arguments: Sequence[str] = (), storage: str = "", **variables: str) -> Served:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        folder = tmp_path / f"run-{len(runs)}"
        own = {"RESULT": str(tmp_path / "result")}
        run = Served(folder, spec, arguments or (str(script),), WORKERS, storage, variables, own)
        runs.append(run)
        return run.start()

    yield begin
    for run in runs:
        run.stop()


def one_worker(steps: int) -> list[Any]:
    """What torch's SGD makes of the whole batches, in one process."""
    import torch

    names: dict[str, Any] = {}
    exec(SCRIPT.split("with headrace")[0], names)
    model = names["network"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        features, labels = names["batch"](step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
    return list(model.parameters())


def difference(left: list[Any], right: list[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def test_synchronous_without_backup_takes_the_steps_of_one_worker_with_the_whole_batch(
    start: Start, tmp_path: Path
) -> None:
    import torch

    run = start({"servers": 2, "consistency": "Synchronous", "optimizer": "SGD"})
    assert run.workers.wait() == [0] * WORKERS, run.workers.output()
    result = torch.load(tmp_path / "result", weights_only=True)
    # float32 has 24 bits: sums of some ten terms in another order differ in the last few, 40 steps long.
    assert difference(result, one_worker(40)) < 2e-6
    assert [(item["version"], item["round"], item["dropped"]) for item in status(run)] == [(40, 40, 0)] * 2


def test_no_worker_is_further_ahead_than_the_bound(start: Start) -> None:
    bound = 2
    spec = {"servers": 2, "consistency": "StaleSynchronous", "staleness": bound, "optimizer": "SGD"}
    run = start(spec, PAUSE_1="0.05")
    assert run.workers.wait() == [0] * WORKERS, run.workers.output()
    for index in range(2):
        versions = run.versions(index)
        ahead = [entry["clock"] - entry["slowest"] for entry in versions if entry["slowest"] is not None]
        assert max(ahead) == bound, "the quick ones use what they are allowed, and no more"
        assert len(versions) == WORKERS * (40 + 1)


def test_asynchronous_workers_wait_for_nobody(start: Start) -> None:
    run = start({"servers": 2, "optimizer": "SGD", "pushEvery": 2, "pullEvery": 2}, PAUSE_2="0.1")
    assert run.workers.wait() == [0] * WORKERS, run.workers.output()
    quick = [entry for entry in run.versions(0) if entry["rank"] != 2 and entry["slowest"] is not None]
    assert max(entry["clock"] - entry["slowest"] for entry in quick) > 5
    assert [item["version"] for item in status(run)] == [WORKERS * 20] * 2, "every push is an update"


def test_a_round_with_backup_goes_without_the_slowest(start: Start) -> None:
    run = start({"consistency": "Synchronous", "backupWorkers": 1, "optimizer": "SGD"}, PAUSE_2="0.05")
    assert run.workers.wait() == [0] * WORKERS, run.workers.output()
    (server,) = status(run)
    assert server["version"] == server["round"] == 40
    assert server["dropped"] > 10, "the slow worker's gradients came too late"


def test_workers_and_servers_may_die_and_the_model_is_as_good(start: Start, tmp_path: Path) -> None:
    trainer = {"dataset": {"builtin": "Digits"}, "epochs": 80, "batchSize": 48, "learningRate": 0.02}
    run = start(
        {"servers": 2, "optimizer": "Adagrad"},
        ("-m", "headrace.training", "classifier"),
        f"file://{tmp_path}/storage",
        HEADRACE_CHECKPOINT_INTERVAL="200ms",
        HEADRACE_CLASSIFIER=json.dumps(trainer),
    )
    workers, servers = run.workers, run.servers
    servers.until(lambda: servers.log(1).count("saved: ") > 1)
    assert workers.end(2) == -signal.SIGKILL
    workers.restart(2)
    servers.until(lambda: servers.log(1).count("worker 2 joined") > 1)
    assert servers.end(1) == -signal.SIGKILL
    servers.restart(1)
    servers.until(lambda: "goes on from version " in servers.log(1))
    assert workers.wait() == [0] * WORKERS, workers.output()
    metrics = json.loads((tmp_path / "storage" / "model" / "metrics.json").read_text())["metrics"]
    # scikit-learn's MLPClassifier of this size has 0.97 to 0.98 on this split.
    assert metrics["accuracy"] > 0.95
    assert servers.end(0, signal.SIGTERM) == 143


def test_a_synchronous_round_goes_on_without_a_lost_worker_and_takes_it_back(start: Start) -> None:
    run = start({"servers": 2, "consistency": "Synchronous", "optimizer": "SGD"}, STEPS="150", PAUSE_0="0.02")
    workers = run.workers
    workers.until(lambda: "step 20" in workers.lines(1))
    workers.end(1)
    reached = len(workers.lines(0))
    workers.until(lambda: len(workers.lines(0)) > reached + 5)
    workers.restart(1)
    assert workers.wait() == [0] * WORKERS, workers.output()
    begins = [int(line.split()[-1]) for line in workers.lines(1) if line.startswith("begins at")]
    assert begins[0] == 0
    assert begins[1] > 20, "it goes on where the others are"
    assert [item["round"] for item in status(run)] == [150] * 2


def test_a_worker_of_another_run_is_refused_with_the_reason(start: Start) -> None:
    run = start({"optimizer": "SGD"}, HEADRACE_RUN_ID="one")
    assert run.workers.wait() == [0] * WORKERS, run.workers.output()
    run.own["HEADRACE_RUN_ID"] = "other"
    run.workers.restart(1)
    assert run.workers.wait()[1] == 78
    assert "this server is of run one, the worker of run other" in run.workers.lines(1)[-1]


def status(run: Served) -> list[dict[str, Any]]:
    """What the servers said at the end."""
    found: list[dict[str, Any]] = json.loads(run.workers.lines(0)[-1])
    return found
