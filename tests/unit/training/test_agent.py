"""Agents as real processes on loopback: what a failure, a lost pod, a hang and SIGTERM lead to."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.agents import Agents

Start = Callable[..., Agents]


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Start]:
    groups: list[Agents] = []

    def start(workers: int, body: str, **told: Any) -> Agents:
        groups.append(Agents(tmp_path, workers, body, told).start())
        return groups[-1]

    yield start
    for group in groups:
        group.close()


def test_a_round_has_torchruns_environment_and_ends_when_all_have_finished(agents: Start) -> None:
    group = agents(2, "", processes=2)
    assert group.wait() == {0: 0, 1: 0}, group.output()
    told = [group.process(1, rank) for rank in range(4)]
    assert [item["RANK"] for item in told] == ["0", "1", "2", "3"]
    assert [item["LOCAL_RANK"] for item in told] == ["0", "1", "0", "1"]
    assert {item["WORLD_SIZE"] for item in told} == {"4"}
    assert {item["MASTER_ADDR"] for item in told} == {"127.0.0.1"}


def test_a_process_that_fails_starts_all_again_and_the_pods_stay(agents: Start) -> None:
    group = agents(3, "if attempt == 1 and rank == 1: sys.exit('error: no luck')\nif attempt == 1: time.sleep(60)\n")
    assert group.wait() == {0: 0, 1: 0, 2: 0}, group.output()
    assert [group.process(2, rank)["RANK"] for rank in range(3)] == ["0", "1", "2"]
    assert "no luck" in group.log(1).read_text()


def test_a_failure_too_many_ends_the_worker_as_its_process_did(agents: Start) -> None:
    group = agents(2, "if rank == 1: sys.exit('error: no such column: price')\ntime.sleep(60)\n", maxRestarts=1)
    assert group.wait() == {0: 143, 1: 1}, group.output()
    assert group.log(1).read_text().strip().splitlines()[-1].endswith("no such column: price")
    assert not (group.folder / "round-3-rank-0").exists()


def test_what_no_further_round_can_mend_ends_the_job_at_once(agents: Start) -> None:
    group = agents(2, "time.sleep(0.2)\nif rank == 1: sys.exit(78)\ntime.sleep(60)\n")
    assert group.wait() == {0: 143, 1: 78}, group.output()


def test_a_script_that_does_not_import_fails_at_once(agents: Start) -> None:
    group = agents(1, "import no_such_module\n")
    assert group.wait() == {0: 78}, group.output()
    assert "no_such_module" in group.log(0).read_text().splitlines()[-1]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_pod_is_waited_for_and_the_others_stay(agents: Start, lost: int) -> None:
    group = agents(3, "if attempt == 1: time.sleep(60)\n")
    pids = [group.process(1, rank)["pid"] for rank in range(3)]
    group.kill(lost, pids[lost])
    kept = {index: process for index, process in group.processes.items() if index != lost}
    group.start(lost)
    assert group.wait() == {0: 0, 1: 0, 2: 0}, group.output()
    assert all(group.processes[index] is process for index, process in kept.items())
    assert group.process(2, lost)["WORLD_SIZE"] == "3"
    left = [pid for rank, pid in enumerate(pids) if rank != lost and Path(f"/proc/{pid}").exists()]
    assert not left, "no process of the round before is left"


def test_a_stopped_process_is_found_named_and_replaced(agents: Start) -> None:
    body = """
for step in range(1000 if attempt == 1 else 3):
    beats.beat(step)
    time.sleep(0.05)
    if step == 5: open(f"{folder}/stepped-{rank}", "w").close()
    while attempt == 1 and rank == 0 and os.path.exists(folder + "/paused"): time.sleep(0.05)
"""
    group = agents(2, body, hangTimeout=1.5)
    pid = group.process(1, 1)["pid"]
    group.until(lambda: all((group.folder / f"stepped-{rank}").exists() for rank in range(2)))
    (group.folder / "paused").touch()
    os.kill(pid, signal.SIGSTOP)
    assert group.wait() == {0: 0, 1: 0}, group.output()
    assert group.process(2, 1)["pid"] != pid
    assert "most recent call first" in group.log(0).read_text()
    assert "most recent call first" in group.log(1).read_text()


def test_steps_that_come_are_no_hang(agents: Start) -> None:
    group = agents(1, "for step in range(20):\n    beats.beat(step)\n    time.sleep(0.1)\n", hangTimeout=1)
    assert group.wait() == {0: 0}, group.output()
    assert not (group.folder / "round-2-rank-0").exists()


@pytest.mark.parametrize("told", [0, 1])
def test_a_worker_that_is_told_to_stop_lets_all_save_first(agents: Start, told: int) -> None:
    body = """
import signal
def save(number, frame):
    time.sleep(1.5)
    open(f"{folder}/saved-{attempt}-{rank}", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open(f"{folder}/ready-{rank}", "w").close()
if attempt == 1: time.sleep(60)
"""
    group = agents(2, body)
    group.until(lambda: all((group.folder / f"ready-{rank}").exists() for rank in range(2)))
    group.processes[told].send_signal(signal.SIGTERM)
    assert group.processes[told].wait(10) == 143, group.output()
    group.start(told)
    assert group.wait() == {0: 0, 1: 0}, group.output()
    assert (group.folder / "saved-1-0").exists()
    assert (group.folder / "saved-1-1").exists()


def test_a_stranger_is_turned_away(agents: Start) -> None:
    group = agents(2, "time.sleep(1)\n")
    group.process(1, 0)
    with socket.create_connection(("127.0.0.1", group.port)) as sock:
        hello = {"type": "hello", "token": "wrong", "index": 1, "incarnation": "x", "state": "idle"}
        sock.sendall(json.dumps(hello).encode() + b"\n")
        assert sock.recv(100) == b""
    assert group.wait() == {0: 0, 1: 0}, group.output()


def test_links_are_measured_before_the_processes_start(tmp_path: Path) -> None:
    addresses = {index: {"POD_IP": f"127.0.0.{index + 1}"} for index in range(3)}
    group = Agents(tmp_path, 3, "", {"preflight": {"timeout": 60}}, addresses).start()
    assert group.wait() == {0: 0, 1: 0, 2: 0}, group.output()
    assert "the link to 127.0.0.1: " in group.log(2).read_text()
