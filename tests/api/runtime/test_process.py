"""The operator as a process: one leads, another takes over, an idle one writes nothing, health tells the truth."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cluster.controlplane import ControlPlane, free_ports, write_kubeconfig
from tests.api.rest import Rest
from tests.api.runtime.conftest import Space, eventually, new_space, wait_until
from tests.api.runtime.proxy import Proxy, expire_once, proxy
from tests.api.runtime.toy import GROUP, gadget_crd, widget

PROGRAM = Path(__file__).parent / "operator_process.py"
SYSTEM = "operator-system"


@dataclass
class Process:
    """One operator process of the toy kind."""

    process: subprocess.Popen[bytes]
    health_port: int
    metrics_port: int
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of an endpoint; (0, "") when nobody answers."""
        port = self.metrics_port if path == "/metrics" else self.health_port
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def leads(self) -> bool:
        """Whether it says so."""
        return self.metric("leader_election_master_status") == 1

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)


@contextmanager
def operator(
    plane: ControlPlane, folder: Path, name: str, *, kubeconfig: Path | None = None, gadgets: bool = False, **extra: str
) -> Iterator[Process]:
    """A running process; `gadgets`: with the second toy kind; `extra` are HEADRACE_* variables."""
    health, metrics = free_ports(2)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")} | {
        "KUBECONFIG": str(kubeconfig or plane.kubeconfig),
        "POD_NAME": name,
        "POD_NAMESPACE": SYSTEM,
        "HEADRACE_HOST": "127.0.0.1",
        "HEADRACE_HEALTH_PORT": str(health),
        "HEADRACE_METRICS_PORT": str(metrics),
        **{f"HEADRACE_{key.upper()}": value for key, value in extra.items()},
        "TOY_GADGETS": "true" if gadgets else "",
    }
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, str(PROGRAM)], env=environment, stdout=output, stderr=output)
    try:
        yield Process(process, health, metrics, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", autouse=True)
def system(plane: ControlPlane) -> None:
    """The namespace of the Leases."""
    Rest(plane.kubeconfig)("POST", "/api/v1/namespaces", {"metadata": {"name": SYSTEM}})


def audit(plane: ControlPlane, since: int, space: str) -> tuple[Counter[tuple[str, str]], int]:
    """Writes of the operator from byte `since` of the audit log on, by verb and resource, and the log's length.

    Of the namespace `space` and the Leases': what other tests left behind elsewhere is not idle.
    """
    assert plane.audit_log is not None
    writes: Counter[tuple[str, str]] = Counter()
    with plane.audit_log.open("rb") as file:
        file.seek(since)
        for line in file:
            event = json.loads(line)
            agent, verb = event.get("userAgent", ""), event["verb"]
            target = event.get("objectRef", {})
            if target.get("namespace", SYSTEM) not in (space, SYSTEM):
                continue
            if agent.startswith("headrace") and verb not in ("get", "list", "watch"):
                writes[verb, target.get("resource", "")] += 1
        return writes, file.tell()


def test_an_idle_operator_writes_its_lease_and_nothing_else(plane: ControlPlane, space: Space, tmp_path: Path) -> None:
    for number in range(20):
        space.create(f"w-{number}", pods=2)
    with operator(plane, tmp_path, "idle", lease_name="idle", resync="1") as process:
        for number in range(20):
            wait_until(partial(space.is_ready, f"w-{number}"), f"w-{number} is Ready")
        wait_until(lambda: len(space.events()) >= 20, "the Events")
        _, begin = audit(plane, 0, space.name)
        looks = process.metric("controller_runtime_reconcile_total")
        # Every resource is looked at several times by the resync, which is every second here.
        wait_until(lambda: process.metric("controller_runtime_reconcile_total") > looks + 60, "three looks at each")
        writes, _ = audit(plane, begin, space.name)
        assert set(writes) <= {("update", "leases")}
        assert process.get("/livez") == (200, "ok\n")
        # A process that starts on a cluster where all is well has nothing to write either.
        _, begin = audit(plane, 0, space.name)
    with operator(plane, tmp_path, "again", lease_name="again") as process:
        wait_until(lambda: process.metric("controller_runtime_reconcile_total") >= 20, "a look at each")
        writes, _ = audit(plane, begin, space.name)
        assert {verb_and_resource for verb_and_resource in writes if verb_and_resource[1] != "leases"} == set()


async def test_the_standby_takes_over_from_a_leader_that_stops_hangs_or_is_killed(
    plane: ControlPlane, space: Space, tmp_path: Path
) -> None:
    # A Lease that nobody gives back takes 15 s to expire, so the two cases run at the same time, each with operators of
    # its own that see one namespace.
    other = new_space(plane)
    async with proxy(plane.kubeconfig, space.name) as one, proxy(plane.kubeconfig, other.name) as two:
        for between, name in ((one, "one"), (two, "two")):
            write_kubeconfig(tmp_path / name, between.url, plane.certificate_authority.read_text(), "unused")
        await asyncio.gather(
            asyncio.to_thread(_stops_and_hangs, plane, space, tmp_path, one),
            asyncio.to_thread(_is_killed, plane, other, tmp_path),
        )


def _stops_and_hangs(plane: ControlPlane, space: Space, folder: Path, between: Proxy) -> None:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(operator(plane, folder, name, kubeconfig=folder / "one", lease_name="one"))
            for name in ("a", "b", "c")
        ]
        leader = follow(processes, 60)
        wait_until(lambda: all(process.get("/readyz")[0] == 200 for process in processes), "all are ready", 60)
        assert sum(process.leads() for process in processes) == 1
        space.create("first", pods=2)
        wait_until(lambda: space.is_ready("first"), "the leader works")

        # In good order: the Lease is given back, the exit code is 0, the next one leads within a retry period (2.4 s).
        leader.send(signal.SIGTERM)
        assert leader.process.wait(15) == 0
        processes.remove(leader)
        leader = follow(processes, 5)
        wait_until(lambda: leader.get("/readyz")[0] == 200, "it is ready")

        # Hanging: another one leads before 20 s.
        leader.send(signal.SIGSTOP)
        processes.remove(leader)
        hung, leader = leader, follow(processes, 20)
        space.create("second", pods=1)
        wait_until(lambda: space.is_ready("second"), "it works")
        wait_until(lambda: len(space.events()) == 2, "it has nothing left to do")

        # When the hung one goes on, it ends, and writes nothing more.
        before = len(between.writes())
        hung.send(signal.SIGCONT)
        assert hung.process.wait(15) == 1
        assert "was not renewed" in hung.log.read_text()
        assert {call.path.rpartition("/")[2] for call in between.writes()[before:]} <= {"one"}  # the Lease


def _is_killed(plane: ControlPlane, space: Space, folder: Path) -> None:
    with ExitStack() as stack:
        leader, standby = (
            stack.enter_context(operator(plane, folder, name, kubeconfig=folder / "two", lease_name="two"))
            for name in ("d", "e")
        )
        if follow([leader, standby], 60) is standby:
            leader, standby = standby, leader
        wait_until(lambda: standby.get("/readyz")[0] == 200, "the standby is ready", 60)
        space.create("w", pods=2)
        wait_until(lambda: space.is_ready("w"), "the leader works")
        leader.send(signal.SIGKILL)
        space.delete("pods", "w-1-1")
        follow([standby], 20)
        wait_until(lambda: space.pods() == ["w-2-0", "w-2-1"], "the standby does what was left to do")


def follow(candidates: list[Process], seconds: float) -> Process:
    """The candidate that leads, at the latest after this time."""
    leaders: list[Process] = []

    def look() -> bool:
        leaders[:] = [process for process in candidates if process.leads()]
        return bool(leaders)

    wait_until(look, "somebody leads", seconds)
    return leaders[0]


async def test_resources_that_went_while_kopf_did_not_look_are_dropped(
    plane: ControlPlane, space: Space, tmp_path: Path
) -> None:
    """kopf says nothing of what a new list lacks; the operator notices."""
    async with proxy(plane.kubeconfig, space.name) as between:
        kubeconfig = tmp_path / "kubeconfig"
        write_kubeconfig(kubeconfig, between.url, plane.certificate_authority.read_text(), "unused")
        with operator(plane, tmp_path, "relist", kubeconfig=kubeconfig, leader_elect="false"):
            space.create("goes")
            await eventually(partial(space.is_ready, "goes"), "Ready")
            between.refuse = 503
            between.cut_watches()
            space.delete("widgets", "goes")
            space.delete("configmaps", "goes")
            between.fault_of = expire_once(between)
            between.refuse = 0
            space.create("comes")
            await eventually(partial(space.is_ready, "comes"), "it works on", 40)
            # The children's list may have come before the owners'; what was made for the owner that is gone is the
            # garbage collector's, which is not here. Once that is gone nobody makes it again.
            if space.get("configmaps", "goes") is not None:
                space.delete("configmaps", "goes")
            for _ in range(2):  # a child that is deleted later comes back, so one that is deleted now would have
                space.delete("configmaps", "comes")
                await eventually(lambda: space.get("configmaps", "comes") is not None, "the child of what is there")
            assert space.get("configmaps", "goes") is None


def test_a_kind_whose_crd_is_missing_stops_no_other_and_is_found_when_it_comes(
    plane: ControlPlane, space: Space, tmp_path: Path
) -> None:
    with operator(plane, tmp_path, "kinds", lease_name="kinds", gadgets=True) as process:
        space.create("w")
        wait_until(lambda: space.is_ready("w"), "the kind that is served works", 60)
        assert "has no gadgets; is the CRD installed?" in process.log.read_text()
        assert 'headrace_kind_served{kind="Gadget"} 0.0' in process.get("/metrics")[1]
        assert 'headrace_kind_served{kind="Widget"} 1.0' in process.get("/metrics")[1]
        assert process.get("/livez") == process.get("/readyz") == (200, "ok\n")

        rest = space.rest
        assert rest("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", gadget_crd()).accepted
        try:
            path = space.path("widgets").replace("widgets", "gadgets")
            gadget = widget("g", space.name) | {"kind": "Gadget"}
            wait_until(lambda: rest("POST", path, gadget).status in (201, 409), "gadgets are served")
            wait_until(lambda: "status" in rest("GET", f"{path}/g").body, "gadgets are watched", 60)
            assert 'headrace_kind_served{kind="Gadget"} 1.0' in process.get("/metrics")[1]
            space.create("v")
            wait_until(lambda: space.is_ready("v"), "the first kind is still watched")
        finally:
            rest("DELETE", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gadgets.{GROUP}")
        # And when it goes again, the others work on.
        wait_until(lambda: 'headrace_kind_served{kind="Gadget"} 0.0' in process.get("/metrics")[1], "it is missed", 60)
        space.create("u")
        wait_until(lambda: space.is_ready("u"), "the first kind goes on", 60)


def test_without_a_cluster_it_says_what_to_set(plane: ControlPlane, tmp_path: Path) -> None:
    with operator(plane, tmp_path, "lost", kubeconfig=tmp_path / "missing") as process:
        assert process.process.wait(60) == 1
        assert "set HEADRACE_KUBECONFIG" in process.log.read_text()
