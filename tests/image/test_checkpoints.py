"""Checkpoints of several workers: spread tensors, another number of workers, a store that is full."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.image.forks import run_module
from tests.image.workers import Workers, finished_steps

FULL = Path("/full")
"""A file system of 600 KiB, see run.py."""


@pytest.fixture(scope="module")
def spreading(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("spreading")
    return folder, json.loads(run_module("spreading", folder).splitlines()[-1])


def test_a_spread_model_goes_on_with_another_number_of_workers_bit_for_bit(
    spreading: tuple[Path, dict[str, Any]],
) -> None:
    _, result = spreading
    assert [start for start, _ in result["alone"]] == [0, 3, 6, 9]
    assert result["spread"] == result["alone"]


def test_each_worker_writes_its_shards_and_no_pickle(spreading: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = spreading
    checkpoints = folder / "spread" / "storage" / "checkpoints"
    manifest = json.loads((checkpoints / "step-12" / "manifest.json").read_text())
    assert sorted(name for name in manifest["files"] if name.startswith("shard")) == [
        f"shard-{rank}.safetensors" for rank in range(3)
    ]
    assert len(manifest["parts"]) == 3
    assert {path.suffix for path in checkpoints.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_what_all_have_alike_can_be_written_by_all(spreading: tuple[Path, dict[str, Any]]) -> None:
    folder, result = spreading
    assert result["split"] == result["alone"][:2]
    (manifest,) = (folder / "split" / "storage" / "checkpoints" / "step-3").glob("manifest.json")
    sizes = {name: entry["size"] for name, entry in json.loads(manifest.read_text())["files"].items()}
    assert sorted(name for name in sizes if name != "json") == [f"safetensors-{rank}" for rank in range(3)]


SCRIPT = """
import os
import time
import torch
import headrace.training

with headrace.training.session() as run:
    model = torch.nn.Linear(100, 300)  # 118 KiB, six of which fill the disk
    state = run.checkpoints.restore({"model": model})
    for step in range(state["step"] if state else 0, 40):
        time.sleep(0.02)
        run.report(step=step + 1, steps=40, loss=torch.tensor(0.5))
        if run.checkpoints.due():
            run.checkpoints.save(step + 1, {"model": model})
            run.checkpoints.wait()
            run.flush()
"""


@pytest.mark.skipif(not FULL.exists(), reason="needs the small disk that tests/image/run.py mounts")
def test_a_full_disk_costs_checkpoints_not_the_run(tmp_path: Path) -> None:
    storage = FULL / "run"
    script = SCRIPT.replace("session()", "session(sink=lambda line: print('REPORT', line, flush=True))")
    variables = {"HEADRACE_CHECKPOINT_INTERVAL": "10ms", "HEADRACE_CHECKPOINT_KEEP": "100"}
    workers = Workers(tmp_path / "logs", f"file://{storage}", 1, ("-c", script), variables).start()
    assert workers.wait() == [0], workers.output()
    log = workers.logs[0].read_text()
    assert "a checkpoint could not be saved, training goes on without it" in log
    reports = [json.loads(line.removeprefix("REPORT ")) for line in log.splitlines() if line.startswith("REPORT ")]
    assert reports[-1]["step"] == 40
    problem = reports[-1]["checkpoint"]["problem"]
    assert problem["reason"] == "StorageFull"
    assert "delete what is no longer needed, or raise the quota" in problem["message"]
    kept = finished_steps(storage)
    assert kept, "those before are still there"
    assert reports[-1]["checkpoint"]["step"] == kept[-1]

    second = Workers(
        tmp_path / "again", f"file://{storage}", 1, ("-c", script), variables | {"HEADRACE_ATTEMPT": "2"}
    ).start()
    assert second.wait() == [0], second.output()
    assert f"resumed from the checkpoint of step {kept[-1]}" in second.logs[0].read_text()


MEASURED = """
import os
import signal
import time
import urllib.request
import torch
from torch.nn.parallel import DistributedDataParallel
import headrace.training
import headrace.training.goodput

headrace.training.goodput.WRITE_EVERY = 0.2

def slow(batches):
    for batch in batches:
        time.sleep(0.03)
        yield batch

with headrace.training.session(sink=lambda line: print("REPORT", line, flush=True)) as run:
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    run.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    parts = {"model": model, "optimizer": optimizer}
    state = run.checkpoints.restore(parts)
    start = state["step"] if state else 0
    for step, x in enumerate(run.data(slow([torch.ones(4, 8)] * (100 - start))), start + 1):
        optimizer.zero_grad()
        time.sleep(0.02 if run.rank else 0.05)  # worker 1 waits for worker 0
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        run.report(step=step, steps=100, loss=loss, samples=4)
        if run.checkpoints.due():
            run.checkpoints.save(step, parts)
        if step == 80:
            port = int(os.environ["HEADRACE_METRICS_PORT"]) + int(os.environ["LOCAL_RANK"])
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
            print("METRICS", text.replace(chr(10), "|"), flush=True)
            if os.environ["HEADRACE_ATTEMPT"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
"""


def measured(tmp_path: Path, attempt: int) -> Workers:
    variables = {
        "HEADRACE_CHECKPOINT_INTERVAL": "1s",
        "HEADRACE_ATTEMPT": str(attempt),
        "HEADRACE_METRICS_PORT": "9400",
    }
    workers = Workers(tmp_path / f"logs-{attempt}", f"file://{tmp_path}/storage", 2, ("-c", MEASURED), variables)
    return workers.start([{"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"}])


def lines(workers: Workers, rank: int, kind: str) -> list[str]:
    text = workers.logs[rank].read_text()
    return [line.removeprefix(f"{kind} ") for line in text.splitlines() if line.startswith(f"{kind} ")]


def test_a_worker_shows_where_its_time_goes(tmp_path: Path) -> None:
    first = measured(tmp_path, 1)
    first.until(lambda: '"step":' in first.logs[0].read_text())
    asked = [sys.executable, "-m", "headrace.training.profile", "--rank", "0", "--steps", "3"]
    uri = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    assert uri.startswith(f"file://{tmp_path}/storage/profiles/attempt-1-rank-0-steps-")
    trace = json.loads(gzip.decompress(Path(uri.removeprefix("file://")).read_bytes()))
    assert any("allreduce" in event["name"].lower() for event in trace["traceEvents"] if "name" in event)

    assert -signal.SIGKILL in first.wait()
    second = measured(tmp_path, 2)
    assert second.wait() == [0, 0], second.output()

    families = text_string_to_metric_families(lines(second, 1, "METRICS")[0].replace("|", "\n"))
    samples = [sample for family in families for sample in family.samples]
    assert all((sample.labels["job"], sample.labels["rank"]) == ("test", "1") for sample in samples)
    values = {sample.name.removeprefix("headrace_training_"): sample.value for sample in samples}
    assert (values["step"], values["learning_rate"]) == (80, 0.125)
    parts = {sample.labels["part"]: sample.value for sample in samples if "part" in sample.labels}
    assert parts["data"] >= 0.03
    assert parts["compute"] >= 0.02
    assert parts["communication"] >= 0.02, "it waits for the other, which takes 0.03 s longer"

    report = json.loads(lines(second, 0, "REPORT")[-1])
    assert report["estimatedRemainingSeconds"] == 0
    assert float(report["learningRate"]) == 0.125
    split = {name: float(value) for name, value in report["stepTime"].items()}
    assert split["total"] == pytest.approx(sum(split[part] for part in PARTS), rel=0.02)
    goodput = report["goodput"]
    assert goodput["lostSteps"] > 0, "it was killed after its checkpoint"
    assert goodput["restart"] > 0
    assert goodput["useful"] >= 100 * 0.08 * 0.9
    spent = sum(value for name, value in goodput.items() if name not in ("since", "at"))
    assert spent == pytest.approx(goodput["at"] - goodput["since"], rel=0.1)

    (events,) = (tmp_path / "storage" / "tensorboard" / "attempt-2").iterdir()
    assert events.name.startswith("events.out.tfevents.")
    assert "train/loss" in scalars(events)
    assert "step_seconds/data" in scalars(events)


PARTS = ("data", "communication", "compute")


def scalars(path: Path) -> set[str]:
    """Names of the curves in an event file, read by the protocol buffers that TensorBoard reads it with."""
    from tensorboardX.proto.event_pb2 import Event

    content, found, position = path.read_bytes(), set(), 0
    while position < len(content):  # TFRecord: length (8 bytes), its CRC (4), data, CRC (4)
        length = int.from_bytes(content[position : position + 8], "little")
        event = Event.FromString(content[position + 12 : position + 12 + length])
        found |= {value.tag for value in event.summary.value}
        position += 16 + length
    return found
