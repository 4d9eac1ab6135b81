"""Whatever call fails, and however, the end is the same; and what the watch did not tell is noticed all the same."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from tests.api.runtime.conftest import Space, eventually, new_space, running
from tests.api.runtime.proxy import Call, Fault, Proxy, expire_once
from tests.api.runtime.toy import Widget

PATIENCE = 1.0
"""Seconds after which the manager gives up on a request that hangs."""


def state(space: Space, name: str = "w") -> dict[str, Any]:
    """What a user sees in the end, without names of the namespace, uids and times."""
    child = space.get("configmaps", name) or {"metadata": {"labels": {}}}
    status = (space.get("widgets", name) or {}).get("status", {})
    return {
        "data": child.get("data"),
        "labels": child["metadata"]["labels"],
        "pods": space.pods(),
        "attempt": status.get("attempt"),
        "ready": {k: v for k, v in space.ready(name).items() if k in ("status", "reason", "message")},
    }


EXPECTED = {
    "data": {"color": "blue"},
    "labels": {"app.kubernetes.io/managed-by": "headrace"},
    "pods": ["w-1-0", "w-1-1"],
    "attempt": 1,
    "ready": {"status": "True", "reason": "Running", "message": "attempt 1 runs 2 pods"},
}


async def calls_without_fault(plane: ControlPlane) -> list[Call]:
    """The calls of one Widget's way to Ready."""
    space = new_space(plane)
    async with running(plane, space) as run:
        space.create("w", pods=2)
        await eventually(lambda: space.is_ready("w"), "Ready")
        await run.settle()
        return list(run.proxy.calls)


@pytest.mark.parametrize("fault", ["refused", "lost", "hangs", "conflict"])
async def test_each_call_may_fail_and_the_end_is_the_same(plane: ControlPlane, fault: Fault) -> None:
    calls = await calls_without_fault(plane)
    assert len(calls) >= 10
    gate = asyncio.Semaphore(5)

    async def once(number: int) -> tuple[int, dict[str, Any], int]:
        space = new_space(plane)

        def prepare(proxy: Proxy) -> None:
            proxy.fault_of = lambda index, call: fault if index == number and _applies(fault, call) else None

        async with gate, running(plane, space, patience=PATIENCE, prepare=prepare) as run:
            await asyncio.to_thread(space.create, "w", pods=2)
            await eventually(lambda: space.is_ready("w"), f"Ready though call {number} {fault}", 30.0)
            await eventually(lambda: state(space) == EXPECTED, f"the end though call {number} {fault}", 10.0)
            started = [item for item in await asyncio.to_thread(space.events) if item["reason"] == "Started"]
            # A lost answer about an Event may double it or lose it; nothing else may.
            assert len(run.proxy.calls) < 60, [call.path for call in run.proxy.calls]
            return number, state(space), len(started)

    results = await asyncio.gather(*(once(number) for number in range(len(calls))))
    assert [(number, end) for number, end, _ in results] == [(number, EXPECTED) for number in range(len(calls))]


def _applies(fault: Fault, call: Call) -> bool:
    # A conflict is an answer to writes; a read that hangs while carried out is the same as one that is lost.
    return fault != "conflict" or call.is_write


async def test_a_watch_that_lags_does_not_double_anything(plane: ControlPlane, space: Space) -> None:
    """Stale reads: the plan counts an attempt for every pod that it does not see."""
    async with running(plane, space) as run:
        await asyncio.wait_for(run.manager.ready.wait(), 10)
        space.create("w", pods=2)
        await eventually(lambda: space.is_ready("w"), "Ready")
        run.proxy.flowing.clear()
        space_set = asyncio.to_thread(space.set, "widgets", "w", spec={"color": "green"})
        await space_set  # nobody hears of this one
        for _ in range(5):
            await run.look_again()
        assert space.pods() == ["w-1-0", "w-1-1"]
        assert (space.get("widgets", "w") or {})["status"]["attempt"] == 1
        run.proxy.flowing.set()
        await eventually(lambda: (space.get("configmaps", "w") or {})["data"] == {"color": "green"}, "green")
        assert (space.get("widgets", "w") or {})["status"]["attempt"] == 1


async def test_a_group_is_replaced_once_though_no_watch_ever_speaks(plane: ControlPlane, space: Space) -> None:
    async with running(plane, space) as run:
        await asyncio.wait_for(run.manager.ready.wait(), 10)
        space.create("w", pods=2)
        await eventually(lambda: space.is_ready("w"), "Ready")
        await run.settle()
        space.delete("pods", "w-1-0")
        await eventually(lambda: space.pods() == ["w-2-0", "w-2-1"], "the second attempt")
        run.proxy.flowing.clear()  # before anything that was just written is heard of
        for _ in range(5):
            await run.look_again()
        assert space.pods() == ["w-2-0", "w-2-1"]
        assert (space.get("widgets", "w") or {})["status"]["attempt"] == 2


@pytest.mark.parametrize("expired", [False, True], ids=["watch-goes-on", "410-Gone"])
async def test_what_happened_while_the_watch_was_cut_is_noticed(
    plane: ControlPlane, space: Space, expired: bool
) -> None:
    async with running(plane, space) as run:
        for name in ("stays", "goes"):
            space.create(name, pods=1)
        for name in ("stays", "goes"):
            await eventually(partial(space.is_ready, name), "Ready")
        await run.settle()
        run.proxy.refuse = 503
        run.proxy.cut_watches()
        space.delete("configmaps", "stays")
        space.delete("widgets", "goes")
        space.delete("configmaps", "goes")
        if expired:
            run.proxy.fault_of = expire_once(run.proxy)
        run.proxy.refuse = 0
        await eventually(lambda: space.get("configmaps", "stays") is not None, "the child that was lost", 40.0)
        await run.settle()
        assert [key.name for key in run.manager.store(Widget)] == ["stays"]
        # The children's watch may have spoken before the owners' did; what was made then is the garbage collector's,
        # which is not here. Once it is gone nobody makes it again.
        if space.get("configmaps", "goes") is not None:
            space.delete("configmaps", "goes")
        await run.settle()
        assert space.get("configmaps", "goes") is None
        if expired:
            assert all(cache.lists >= 2 for cache in run.manager.caches)


async def test_a_server_that_is_down_is_waited_for(plane: ControlPlane, space: Space) -> None:
    def prepare(proxy: Proxy) -> None:
        proxy.refuse = 403

    async with running(plane, space, prepare=prepare) as run:
        space.create("w")
        await eventually(lambda: len(run.proxy.calls) >= 6, "several attempts")
        for status in (500, 429, 410, 404):
            run.proxy.refuse = status
            seen = len(run.proxy.calls)
            await eventually(partial(_called, run.proxy, seen + 2), f"attempts in spite of {status}")
        assert not run.manager.ready.is_set()
        run.proxy.refuse = 0
        await eventually(lambda: space.is_ready("w"), "Ready", 60.0)


def _called(proxy: Proxy, times: int) -> bool:
    return len(proxy.calls) >= times
