"""The queue of gangs: who starts, who waits for whom, who makes room. The cases are small enough to be done by hand."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from controllers.runtime.objects import Manifest
from controllers.trainingjob.fit import Gang, Pass, Shape
from controllers.trainingjob.observed import Admission
from tests.unit.trainingjob.worlds import node


def shape(cpu: float = 1, *, selector: Any = (), tolerations: Any = (), **more: float) -> Shape:
    requests = {"cpu": float(cpu), "pods": 1.0, **more}
    return Shape(tuple(sorted(requests.items())), tuple(selector), tuple(tolerations))


def gang(name: str, workers: int, cpu: float = 1, *, at: int = 0, priority: int = 0, **more: Any) -> Gang:
    """A gang that was made `at` seconds after the first."""
    made = shape(cpu, **more.pop("shape", {}))
    return Gang(name, f"uid-{name}", priority, f"2026-01-01T12:00:{at:02}Z", workers, made, **more)


def nodes(count: int, **offers: Any) -> list[Manifest]:
    return [node(f"node-{number}", "abc"[number % 3], **{"pods": "20", **offers}) for number in range(count)]


def uses(gang: Gang, *places: int) -> dict[str, dict[str, dict[str, float]]]:
    """One pod on each of these nodes."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for place in places:
        of = found.setdefault(f"node-{place}", {}).setdefault(gang.uid, {})
        for name, amount in gang.shape.requests:
            of[name] = of.get(name, 0.0) + amount
    return found


def together(*usages: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for usage in usages:
        for name, by_uid in usage.items():
            for uid, amounts in by_uid.items():
                found.setdefault(name, {})[uid] = dict(amounts)
    return found


def decide(cluster: Iterable[Manifest], usage: Any, *gangs: Gang) -> dict[str, Admission]:
    return Pass(cluster, usage, gangs).decide()


def started(found: Mapping[str, Admission]) -> set[str]:
    return {name for name, admission in found.items() if admission.admitted}


def running(name: str, workers: int, cpu: float = 1, **more: Any) -> Gang:
    return gang(name, workers, cpu, admitted=True, **more)


def test_of_two_gangs_that_each_need_more_than_half_one_starts() -> None:
    """volcano#3373: two jobs of 100 pods each hold half of a cluster for 100, and neither ever starts."""
    cluster = nodes(25, cpu="4")
    found = decide(cluster, {}, gang("one", 100, at=0), gang("two", 100, at=1))
    assert started(found) == {"one"}
    assert found["two"].reason == "InsufficientCPU"
    assert "100 workers ask for cpu=1 each; there is room for 0 of them now" in found["two"].message


def test_priority_comes_before_age_and_age_before_name() -> None:
    cluster = nodes(1, cpu="4")
    found = decide(cluster, {}, gang("a", 4, at=5), gang("b", 4, at=1), gang("c", 4, at=9, priority=10))
    assert started(found) == {"c"}
    found = decide(cluster, {}, gang("a", 4, at=5), gang("b", 4, at=1))
    assert started(found) == {"b"}


def test_a_blocked_big_gang_is_not_overtaken_by_small_ones_that_would_delay_it() -> None:
    cluster = nodes(2, cpu="4")
    old = running("old", 4, at=0)
    usage = uses(old, 0, 0, 1, 1)  # two CPUs free on each node
    big, small = gang("big", 8, at=1), gang("small", 1, at=2)
    found = decide(cluster, usage, old, big, small)
    assert started(found) == {"old"}
    assert "keeps its place" in found["big"].message
    assert found["small"].reason == "WaitingInQueue"


def test_what_the_blocked_gang_cannot_use_is_given_to_those_behind_it() -> None:
    cluster = [*nodes(2, cpu="4"), node("node-2", "c", cpu="4", pods="20", labels={"kind": "slow"}.items())]
    for item in cluster[:2]:
        item["metadata"]["labels"]["kind"] = "fast"
    old = running("old", 4, at=0)
    usage = uses(old, 0, 0, 1, 1)
    big = gang("big", 8, at=1, shape={"selector": [("kind", "fast")]})
    found = decide(cluster, usage, old, big, gang("small", 4, at=2), gang("more", 1, at=3))
    assert started(found) == {"old", "small"}, "on the slow node, which is full then"


def test_a_stream_of_small_gangs_does_not_starve_a_big_one() -> None:
    """Each step a small gang comes and one that runs ends; at the latest when all that ran before have ended the big
    gang starts."""
    cluster = nodes(2, cpu="5")
    first = [running(f"early-{n}", 2, at=0) for n in range(4)]
    here = {item.name: uses(item, 0, 1) for item in first}
    gangs = {item.name: item for item in first}
    big = gang("big", 8, at=1)
    for step in range(40):
        late = gang(f"late-{step:02}", 1, at=2 + step)
        found = decide(cluster, together(*here.values()), big, late, *gangs.values())
        if found["big"].admitted:
            break
        if found[late.name].admitted:
            gangs[late.name] = running(late.name, 1, at=2 + step)
            counts = {
                n: sum(of.get("cpu", 0.0) for of in together(*here.values()).get(f"node-{n}", {}).values())
                for n in (0, 1)
            }
            here[late.name] = uses(late, min(counts, key=counts.__getitem__))
        ends = next((name for name in gangs if name.startswith("early")), None)
        if ends is not None and step % 3 == 2:
            del gangs[ends], here[ends]
    else:
        pytest.fail("the big gang never started")
    assert step <= 12


def test_a_gang_that_nothing_could_hold_keeps_nobody_waiting() -> None:
    found = decide(nodes(3, cpu="4"), {}, gang("huge", 13, at=0), gang("small", 3, at=1))
    assert started(found) == {"small"}
    assert found["huge"].reason == "InsufficientCPU"
    assert "even with no other job the cluster has room for 12 of them" in found["huge"].message
    assert "lower numWorkers" in found["huge"].message


@pytest.mark.parametrize(
    ("cluster", "asked", "reason"),
    [
        (nodes(2, cpu="4"), {"shape": {"nvidia.com/gpu": 1.0}}, "InsufficientGPU"),
        (nodes(2, cpu="4", gpus="1"), {"shape": {"nvidia.com/gpu": 1.0}}, None),
        (nodes(2, cpu="4"), {"shape": {"selector": [("disk", "ssd")]}}, "NoMatchingNode"),
        ([node("node-0", cpu="8", pods="20", taints=[{"key": "gpu", "effect": "NoSchedule"}])], {}, "NoMatchingNode"),
        (
            [node("node-0", cpu="8", pods="20", taints=[{"key": "gpu", "effect": "NoSchedule"}])],
            {"shape": {"tolerations": [(("key", "gpu"), ("operator", "Exists"))]}},
            None,
        ),
        ([node("node-0", cpu="8", pods="20", ready="Unknown")], {}, "NoMatchingNode"),
        ([node("node-0", cpu="8", pods="1")], {}, "InsufficientResource"),
    ],
    ids=["no GPU", "GPUs", "no such label", "a taint", "a taint that is tolerated", "not ready", "too many pods"],
)
def test_nodes_are_looked_at_as_the_scheduler_does(cluster: Any, asked: Any, reason: str | None) -> None:
    found = decide(cluster, {}, gang("job", 2, **asked))["job"]
    assert found.admitted is (reason is None)
    assert reason is None or found.reason == reason


def test_workers_that_are_balanced_over_zones_need_room_in_each() -> None:
    cluster = [node(f"node-{zone}", zone, cpu=cpu, pods="20") for zone, cpu in (("a", "8"), ("b", "8"), ("c", "1"))]
    assert started(decide(cluster, {}, gang("job", 5, spread=True))) == {"job"}, "2 + 2 + 1"
    refused = decide(cluster, {}, gang("job", 6, spread=True))["job"]
    assert not refused.admitted
    assert "balanced over zones" in refused.message
    assert started(decide(cluster, {}, gang("job", 6))) == {"job"}


def test_pods_of_others_and_workers_that_are_not_bound_yet_take_their_room() -> None:
    cluster = nodes(1, cpu="4")
    foreign = {"node-0": {"": {"cpu": 2.0, "pods": 1.0}}}
    assert started(decide(cluster, foreign, gang("job", 3))) == set()
    assert started(decide(cluster, foreign, gang("job", 2))) == {"job"}
    coming = running("coming", 3, at=9)
    assert started(decide(cluster, uses(coming, 0), coming, gang("job", 2))) == {"coming"}


def test_a_higher_priority_pushes_out_the_youngest_of_the_lowest_and_no_more_than_it_takes() -> None:
    cluster = nodes(3, cpu="4")
    old, young = running("old", 4, at=0), running("young", 4, at=5)
    middle = running("middle", 4, at=7, priority=5)
    usage = together(uses(old, 0, 0, 0, 0), uses(young, 1, 1, 1, 1), uses(middle, 2, 2, 2, 2))
    urgent = gang("urgent", 4, at=9, priority=10)
    found = decide(cluster, usage, old, young, middle, urgent)
    assert {name for name, item in found.items() if item.preempted_by} == {"young"}
    assert found["young"].preempted_by == "TrainingJob urgent"
    assert not found["urgent"].admitted
    assert "young of lower priority makes room for it" in found["urgent"].message


def test_while_the_preempted_leave_nobody_else_is_pushed_out_and_nobody_takes_their_room() -> None:
    cluster = nodes(2, cpu="4")
    old = running("old", 4, at=0)
    leaving = running("leaving", 4, at=1, leaving=True)
    usage = together(uses(old, 0, 0, 0, 0), uses(leaving, 1, 1, 1))  # one of its pods has left already
    found = decide(cluster, usage, old, leaving, gang("urgent", 4, at=9, priority=10), gang("small", 1, at=2))
    assert not [item for item in found.values() if item.preempted_by]
    assert started(found) == {"old"}


@pytest.mark.parametrize(
    "urgent",
    [
        gang("urgent", 4, at=9, priority=10, preempts=False),
        gang("urgent", 4, at=9),
        gang("urgent", 9, at=9, priority=10),
    ],
    ids=["preemptionPolicy Never", "no higher priority", "it would not fit all the same"],
)
def test_nobody_is_pushed_out_in_vain(urgent: Gang) -> None:
    old = running("old", 4, at=0)
    found = decide(nodes(2, cpu="4"), uses(old, 0, 0, 1, 1), old, running("other", 4, at=0), urgent)
    assert not [item for item in found.values() if item.preempted_by]


def test_what_is_admitted_always_fits_the_nodes() -> None:
    """Random queues: the admitted workers' requests never exceed any node, by an exhaustive count of free CPUs."""
    chance = random.Random(7)
    for _ in range(200):
        cluster = nodes(chance.randint(1, 6), cpu=str(chance.randint(1, 16)))
        gangs = [
            gang(f"g{n}", chance.randint(1, 9), chance.randint(1, 5), at=n, priority=chance.randint(0, 2))
            for n in range(8)
        ]
        step = Pass(cluster, {}, gangs)
        found = step.decide()
        for room in step.rooms:
            assert all(amount >= 0 for amount in room.free.values())
        offered = sum(int(item["status"]["allocatable"]["cpu"]) for item in cluster)
        assert sum(dict(g.shape.requests)["cpu"] * g.workers for g in gangs if found[g.name].admitted) <= offered
        assert set(found) == {g.name for g in gangs}


def test_a_namespace_with_less_of_the_cluster_comes_first() -> None:
    crowd = [gang(f"crowd-{n}", 1, at=n, namespace="crowd") for n in range(6)]
    late = [gang(f"late-{n}", 1, at=20 + n, namespace="late") for n in range(2)]
    assert started(decide(nodes(1, cpu="4"), {}, *crowd, *late)) == {"crowd-0", "crowd-1", "late-0", "late-1"}


def test_what_runs_counts_and_so_do_weights() -> None:
    at_work = [running(f"run-{n}", 1, namespace="a") for n in range(3)]
    usage = {"node-0": {item.uid: dict(item.shape.requests) for item in at_work}}
    both = [gang("of-a", 1, at=1, namespace="a"), gang("of-b", 1, at=2, namespace="b")]
    assert "of-b" in started(decide(nodes(1, cpu="4"), usage, *at_work, *both))
    assert "of-a" not in started(decide(nodes(1, cpu="4"), usage, *at_work, *both))
    owed = [
        gang(f"{name}-{n}", 1, at=n, namespace=name, weight=w) for n in range(6) for name, w in (("x", 2), ("y", 1))
    ]
    found = started(decide(nodes(1, cpu="6"), {}, *owed))
    assert len([name for name in found if name.startswith("x")]) == 4


def test_the_share_is_of_the_resource_of_which_a_namespace_has_most() -> None:
    """The example of Ghodsi et al. 2011, section 4.1: of 9 CPUs and 18 GB A gets 3 tasks of <1, 4>, B 2 of <3, 1>."""
    a = [gang(f"a-{n}", 1, 1, at=n, namespace="a", shape={"memory": 4.0}) for n in range(9)]
    b = [gang(f"b-{n}", 1, 3, at=n, namespace="b", shape={"memory": 1.0}) for n in range(9)]
    found = started(decide(nodes(1, cpu="9", memory="18"), {}, *a, *b))
    assert len([name for name in found if name.startswith("a")]) == 3
    assert len([name for name in found if name.startswith("b")]) == 2


def test_priority_comes_before_fairness() -> None:
    mine = [gang("first", 3, at=1, namespace="a", priority=10), gang("second", 1, at=2, namespace="a", priority=10)]
    other = gang("other", 1, at=0, namespace="b")
    assert started(decide(nodes(1, cpu="4"), {}, *mine, other)) == {"first", "second"}
