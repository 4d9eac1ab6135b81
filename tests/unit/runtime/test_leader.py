"""Who leads, when answers about the Lease are lost and when somebody else takes it."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from controllers.runtime.client import NO_ANSWER, ApiError, NotLeader
from controllers.runtime.objects import Key

LEADER = Path(__file__).parents[3] / "operator" / "leader.py"
CONFLICT = 409


@pytest.fixture(scope="module")
def leader() -> ModuleType:
    """operator/ is a program, not a package, so its modules are loaded by path."""
    spec = importlib.util.spec_from_file_location("operator_leader", LEADER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Api:
    """One Lease, with the API server's check of the resourceVersion."""

    def __init__(self) -> None:
        self.now = 100.0
        self.version = 0
        self.lease: dict[str, Any] | None = None
        self.written = 0
        self.answers: list[int] = []
        """Statuses of the answers to the next writes, each of which is carried out all the same."""
        self.hang = False
        """Whether writes are carried out and never answered."""
        self.down = False
        """Whether every request fails after 5 s."""

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> dict[str, Any]:
        assert path.startswith("/apis/coordination.k8s.io/v1/namespaces/system/leases")
        if self.down:
            self.now += 5
            raise ApiError(NO_ANSWER, "Timeout", "no answer in time")
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound", "no Lease", {"kind": "leases"})
            return copy.deepcopy(self.lease)
        if self.lease is not None and body["metadata"].get("resourceVersion") != str(self.version):
            raise ApiError(CONFLICT, "Conflict", "the object has been modified")
        self.store(body)
        self.written += 1
        if self.hang:
            await asyncio.Event().wait()
        if self.answers:
            raise ApiError(self.answers.pop(), "", "after it was carried out")
        assert self.lease is not None
        return copy.deepcopy(self.lease)

    def store(self, lease: dict[str, Any]) -> None:
        self.version += 1
        self.lease = copy.deepcopy(lease)
        self.lease["metadata"]["resourceVersion"] = str(self.version)

    @property
    def spec(self) -> dict[str, Any]:
        assert self.lease is not None
        spec: dict[str, Any] = self.lease["spec"]
        return spec

    def taken_by(self, holder: str) -> None:
        """Somebody else writes the Lease."""
        assert self.lease is not None
        self.store(self.lease | {"spec": self.spec | {"holderIdentity": holder, "renewTime": "2026-03-01T10:00:00Z"}})


async def elected(leader: ModuleType, api: Api) -> Any:
    """A leader whose renewals come fast; seconds pass only by the API's clock."""
    election = leader.LeaderElection(
        api, Key("system", "lease"), "me", times=leader.LeaseTimes(retry_period=0.001), clock=lambda: api.now
    )
    await election.acquire()
    return election


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


# A client that sends a PUT again after a dropped connection gets 409 for its own first one.
@pytest.mark.parametrize("answer", [NO_ANSWER, CONFLICT], ids=["lost", "sent-twice"])
async def test_a_renewal_that_was_carried_out_but_not_confirmed_costs_no_leadership(
    leader: ModuleType, answer: int
) -> None:
    api = Api()
    election = await elected(leader, api)
    acquired = api.spec["acquireTime"]
    api.answers.append(answer)
    keeping = asyncio.create_task(election.keep())
    before = api.written
    await until(lambda: api.written >= before + 4 or keeping.done())
    assert not keeping.done()
    assert election.leading
    assert (api.spec["holderIdentity"], api.spec["acquireTime"]) == ("me", acquired)
    assert not api.spec.get("leaseTransitions")
    await cancel(keeping)
    await election.release()
    assert api.spec["holderIdentity"] == ""


async def test_the_lease_is_given_back_although_the_last_renewal_was_cut_off(leader: ModuleType) -> None:
    api = Api()
    election = await elected(leader, api)
    before, api.hang = api.written, True
    keeping = asyncio.create_task(election.keep())
    await until(lambda: api.written > before)
    await cancel(keeping)
    api.hang = False
    await election.release()
    assert api.spec["holderIdentity"] == ""
    assert not election.leading


@pytest.mark.parametrize("answers", [[], [NO_ANSWER]], ids=["at-once", "after-a-lost-answer"])
async def test_a_lease_that_somebody_else_holds_is_lost_at_once_and_left_alone(
    leader: ModuleType, answers: list[int]
) -> None:
    api = Api()
    election = await elected(leader, api)
    api.answers.extend(answers)
    keeping = asyncio.create_task(election.keep())
    await until(lambda: not api.answers)
    api.taken_by("other")
    with pytest.raises(leader.LeadershipLost):
        await asyncio.wait_for(keeping, 10)
    with pytest.raises(NotLeader):
        election.check()
    await election.release()
    assert api.spec["holderIdentity"] == "other"


async def test_a_leader_without_answers_stops_at_the_renew_deadline(leader: ModuleType) -> None:
    api = Api()
    election = await elected(leader, api)
    started = api.now
    api.down = True
    with pytest.raises(leader.LeadershipLost):
        await asyncio.wait_for(election.keep(), 10)
    assert api.now - started == 10  # two requests of 5 s
    with pytest.raises(NotLeader):
        election.check()
