"""Which replica is asked."""

from __future__ import annotations

from typing import Any

from headrace.api.inferenceservice import OutlierDetection
from headrace.serving.balancer import Balancer, Readiness, Replica


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def balanced(*hosts: str, **outliers: Any) -> tuple[Balancer, Clock, dict[str, Replica]]:
    clock = Clock()
    balancer = Balancer(clock, OutlierDetection(**outliers))
    balancer.update((host, 80) for host in hosts)
    return balancer, clock, {replica.address.host: replica for replica in balancer.replicas}


def picked(balancer: Balancer, *tried: Replica) -> str:
    replica = balancer.pick(tried)
    return replica.address.host if replica else ""


def test_idle_replicas_take_turns() -> None:
    balancer, _, _ = balanced("a", "b", "c")
    turns = [picked(balancer) for _ in range(6)]
    assert sorted(turns[:3]) == ["a", "b", "c"]
    assert turns[3:] == turns[:3]


def test_the_one_with_the_fewest_outstanding_requests_is_asked() -> None:
    balancer, _, replicas = balanced("a", "b")
    replicas["a"].outstanding = 3
    replicas["b"].outstanding = 2
    assert {picked(balancer) for _ in range(4)} == {"b"}
    assert picked(balancer, replicas["b"]) == "a"
    assert picked(balancer, *replicas.values()) == ""


def test_failures_set_aside_for_longer_each_time_up_to_half_a_minute() -> None:
    balancer, clock, replicas = balanced("a", "b")
    times = []
    for _ in range(7):
        seconds = balancer.failed(replicas["a"], silent=True)
        times.append(seconds)
        assert {picked(balancer) for _ in range(3)} == {"b"}
        clock.now += seconds
        assert "a" in {picked(balancer) for _ in range(2)}
    assert times == [1, 2, 4, 8, 16, 30, 30]
    balancer.answered(replicas["a"])
    assert balancer.failed(replicas["a"], silent=True) == 1


def test_requests_that_fail_together_count_once() -> None:
    balancer, clock, replicas = balanced("a", "b")
    assert balancer.failed(replicas["a"], silent=False) == 1
    clock.now += 0.25
    assert balancer.failed(replicas["a"], silent=False) == 0.75
    clock.now += 1
    assert balancer.failed(replicas["a"], silent=False) == 2


def test_a_probe_brings_back_after_a_lost_connection_but_not_after_silence() -> None:
    balancer, _, replicas = balanced("a", "b")
    balancer.failed(replicas["a"], silent=False)
    balancer.probed(replicas["a"], Readiness.READY)
    assert {picked(balancer) for _ in range(2)} == {"a", "b"}
    balancer.failed(replicas["a"], silent=True)
    balancer.probed(replicas["a"], Readiness.READY)
    assert {picked(balancer) for _ in range(3)} == {"b"}


def test_a_leaving_replica_is_asked_only_where_no_other_is() -> None:
    balancer, _, replicas = balanced("a", "b")
    balancer.probed(replicas["a"], Readiness.LEAVING)
    assert {picked(balancer) for _ in range(3)} == {"b"}
    balancer.probed(replicas["b"], Readiness.UNREADY)
    assert {picked(balancer) for _ in range(3)} == {"a"}
    assert balancer.any_alive
    balancer.probed(replicas["a"], Readiness.UNREADY)
    assert not balancer.any_alive


def test_one_unanswered_probe_is_forgiven_and_two_in_a_row_are_not() -> None:
    balancer, _, replicas = balanced("a")
    assert not balancer.probed(replicas["a"], None)
    balancer.probed(replicas["a"], Readiness.READY)
    assert not balancer.probed(replicas["a"], None)
    assert balancer.any_alive
    assert balancer.probed(replicas["a"], None)
    assert not balancer.any_alive


def test_when_all_are_set_aside_the_first_to_come_back_is_asked() -> None:
    balancer, clock, replicas = balanced("a", "b")
    balancer.failed(replicas["b"], silent=False)
    clock.now += 0.5
    balancer.failed(replicas["a"], silent=False)
    assert picked(balancer) == "b"


def test_what_is_known_of_a_replica_that_stays_is_kept() -> None:
    balancer, _, replicas = balanced("a", "b")
    balancer.failed(replicas["a"], silent=True)
    came, went = balancer.update([("a", 80), ("c", 80)])
    assert [replica.address.host for replica in came] == ["c"]
    assert went == [replicas["b"]]
    assert {picked(balancer) for _ in range(3)} == {"c"}


def test_errors_in_a_row_set_aside_and_an_answer_between_them_does_not() -> None:
    balancer, clock, replicas = balanced("a", "b", consecutive5xx=3, base_ejection_time="2s", max_ejection_time="5s")
    a = replicas["a"]
    assert [balancer.erred(a), balancer.erred(a)] == [0, 0]
    balancer.answered(a)
    assert [balancer.erred(a) for _ in range(3)] == [0, 0, 2]
    assert {picked(balancer) for _ in range(3)} == {"b"}
    balancer.probed(a, Readiness.READY)
    assert {picked(balancer) for _ in range(3)} == {"b"}, "its health endpoint says nothing of errors"
    clock.now += 2
    assert [balancer.erred(a) for _ in range(3)] == [0, 0, 4]
    clock.now += 4
    assert [balancer.erred(a) for _ in range(3)] == [0, 0, 5]


def test_no_more_than_the_percent_is_set_aside_for_errors_and_one_always() -> None:
    balancer, _, replicas = balanced("a", "b", "c", "d", consecutive5xx=1, max_ejection_percent=50)
    assert [balancer.erred(replicas[host]) for host in "abcd"] == [1, 1, 0, 0]
    balancer, _, replicas = balanced("a", "b", consecutive5xx=1, max_ejection_percent=0)
    assert [balancer.erred(replicas[host]) for host in "ab"] == [1, 0]
