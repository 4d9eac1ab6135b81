"""The state machine of rounds: who is waited for, what counts, who is named, and what a new coordinator knows."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.training.agent.coordinator import (
    ELASTIC_WAIT,
    FIRST_WAIT,
    GRACE,
    JOIN_AFTER,
    PROBE_AGAIN,
    PROBE_TIME,
    SETTLING,
    Coordinator,
    Phase,
)
from headrace.training.agent.members import Tell
from headrace.training.agent.preflight import Settings as Preflight
from headrace.training.agent.settings import Settings

EPOCH = 1_700_000_000.0


class Group:
    """A coordinator, a clock and agents that do at once what they are told, except those in `deaf`."""

    def __init__(self, workers: int = 3, **settings: Any) -> None:
        given = {"workers": workers, "min_workers": workers, "max_workers": workers, **settings}
        self.now = 1000.0
        self.coordinator = Coordinator(Settings(**given), self.now, EPOCH)
        self.deaf: set[int] = set()
        self.told: list[Tell] = []
        self.pods = 0

    def join(self, *indexes: int, **hello: Any) -> Group:
        for index in indexes:
            self.pods += 1
            said = {"incarnation": f"pod-{self.pods}", "address": f"10.0.0.{index}", **hello}
            self._do(self.coordinator.joined(index, said, self.now))
        return self

    def say(self, index: int, type_: str, **message: Any) -> Group:
        said = {"type": type_, "round": self.coordinator.round, **message}
        self._do(self.coordinator.said(index, said, self.now))
        return self

    def fail(self, index: int, code: int = 1, message: str = "", **more: Any) -> Group:
        failure = {"rank": index, "code": code, "message": message, "out_of_memory": False, "age": 0.0, **more}
        return self.say(index, "failed", failure=failure)

    def lose(self, index: int) -> Group:
        member = self.coordinator.members[index]
        self._do(self.coordinator.disconnected(index, member.incarnation, self.now))
        return self

    def phase(self) -> Phase:
        return self.coordinator.phase

    def wait(self, seconds: float) -> Group:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.2)
            self._do(self.coordinator.tick(self.now))
        return self

    def kinds(self, index: int) -> list[str]:
        return [item.message["type"] for item in self.told if item.index == index]

    def start_of(self, index: int) -> dict[str, Any]:
        return [item.message for item in self.told if item.index == index and item.message["type"] == "start"][-1]

    def _do(self, told: list[Tell]) -> None:
        for item in told:
            self.told.append(item)
            member = self.coordinator.members.get(item.index)
            if item.message["type"] == "stop" and item.index not in self.deaf and member and member.connected:
                self.say(item.index, "stopped")


def cause(group: Group) -> tuple[str, bool]:
    assert group.coordinator.last is not None
    return group.coordinator.last.reason, group.coordinator.last.counted


def test_a_round_starts_when_everybody_is_there() -> None:
    group = Group().join(0, 2)
    assert group.phase() is Phase.GATHERING
    assert group.coordinator.missing() == [1]
    group.join(1)
    assert [group.start_of(index)["rank"] for index in range(3)] == [0, 1, 2]
    assert group.start_of(2)["master"] == "10.0.0.0"


def test_ranks_follow_zone_and_node() -> None:
    group = Group(5)
    for index, (zone, node) in enumerate([("b", "n1"), ("a", "n2"), ("b", "n3"), ("a", "n4"), ("b", "n1")]):
        group.join(index, zone=zone, node=node)
    assert group.coordinator.order == [0, 4, 2, 1, 3], "zone b is crossed to a once, and worker 0 is rank 0"
    assert group.start_of(4)["rank"] == 1


def test_a_failure_ends_the_round_everywhere_and_counts() -> None:
    group = Group().join(0, 1, 2).fail(1, message="boom").wait(SETTLING + 0.2)
    assert group.coordinator.round == 2
    assert cause(group) == ("WorkerFailed", True)
    assert group.coordinator.restarts == 1
    assert group.coordinator.recent == [pytest.approx(EPOCH, abs=2)]
    assert [group.kinds(index) for index in range(3)] == [["start", "stop", "start"]] * 3


def test_who_only_lost_a_peer_is_not_the_cause() -> None:
    group = Group().join(0, 1, 2)
    group.fail(0, message="Connection closed by peer [10.0.0.2]").fail(2, code=139).wait(1)
    assert "rank 2 (worker 2) was killed by signal 11" in str(group.coordinator.last)


def test_peers_that_fail_because_a_pod_is_gone_cost_no_restart() -> None:
    group = Group().join(0, 1, 2).lose(2).fail(0, message="Connection reset by peer").wait(1)
    assert cause(group) == ("WorkerLost", False)
    assert group.coordinator.restarts == 0
    assert group.phase() is Phase.GATHERING
    group.join(2)
    assert group.phase() is Phase.RUNNING
    assert group.coordinator.round == 2


def test_a_broken_connection_alone_disturbs_nobody() -> None:
    group = Group().join(0, 1, 2)
    incarnation = group.coordinator.members[1].incarnation
    group.lose(1).wait(GRACE / 2).join(1, incarnation=incarnation, state="running", round=1).wait(GRACE)
    assert group.phase() is Phase.RUNNING
    assert group.kinds(1) == ["start"]


def test_a_worker_that_stays_away_is_lost() -> None:
    group = Group().join(0, 1, 2).lose(1).wait(GRACE + 0.2)
    assert cause(group) == ("WorkerLost", False)
    assert group.coordinator.missing() == [1]


def test_a_replacement_takes_the_place_of_a_pod_that_said_nothing() -> None:
    group = Group().join(0, 1, 2)
    group.deaf = {1}
    group.join(1, incarnation="new")
    assert group.coordinator.round == 2
    group.join(1, incarnation="pod-2")
    assert group.told[-1].message["type"] == "leave", "the old pod is not let in again"


def test_a_new_coordinator_goes_on_counting_where_the_lost_one_was() -> None:
    history = {"round": 7, "restarts": 3, "recent": [EPOCH - 5], "hangs": 1}
    group = Group()
    group.join(1, 2, state="running", round=7, history=history, down=2.0).join(0)
    assert group.coordinator.round == 8
    assert (group.coordinator.restarts, group.coordinator.recent) == (3, [EPOCH - 5])
    assert cause(group) == ("WorkerLost", False)
    assert group.kinds(1) == ["stop", "start"]


def test_the_second_word_of_a_worker_that_was_told_to_stop_twice_does_not_end_its_next_round() -> None:
    # Worker 1 was told to stop by the lost coordinator and by the new one; its second "stopped" is late.
    group = Group().join(1, state="running", round=7, history={"round": 7, "restarts": 0, "recent": [], "hangs": 0})
    group.join(0, 2).say(1, "stopped", round=7)
    assert group.coordinator.members[1].state == "running"
    group.fail(2).wait(1)
    assert group.kinds(1) == ["stop", "start", "stop", "start"]


def test_the_budget_is_a_rate() -> None:
    group = Group(1, max_restarts=2, window=3600.0).join(0)
    for expected in (2, 3):
        group.fail(0).wait(10)
        assert group.coordinator.round == expected
    group.wait(3600).fail(0).wait(10)
    assert group.phase() is Phase.RUNNING, "the first two are more than an hour ago"
    group.fail(0).wait(10).fail(0, message="again").wait(10)
    assert group.phase() is Phase.ENDED
    assert group.told[-1].message == {
        "type": "end",
        "code": 1,
        "message": "rank 0 (worker 0) ended with exit code 1: again",
    }


def test_failures_in_a_row_are_paused_between() -> None:
    group = Group(1).join(0).fail(0).wait(1)
    assert group.coordinator.round == 2, "the first costs no pause"
    group.fail(0).wait(1.5)
    assert group.phase() is Phase.GATHERING
    group.wait(2)
    assert group.coordinator.round == 3


def beats(group: Group, **steps: dict[str, Any]) -> None:
    for index in group.coordinator.order:
        beat = {"rank": index, "step": 10, "steps": 10, "age": 70.0, "overdue": True, **steps.get(f"w{index}", {})}
        group.say(index, "beats", beats=[beat])


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({"w1": {"stopped": True}}, "rank 1 (worker 1) is stopped"),
        ({"w2": {"step": 9}}, "rank 2 (worker 2) is behind, at step 9 while others are at 10"),
        ({}, "all ranks are at step 10"),
    ],
)
def test_a_hang_names_who_is_behind(steps: dict[str, Any], words: str) -> None:
    group = Group().join(0, 1, 2)
    for _ in range(3):
        beats(group, **steps)
        group.wait(0.6)
    assert words in str(group.coordinator.last)
    assert cause(group) == ("WorkerHung", True)
    assert [item.message["dump"] for item in group.told if item.message["type"] == "stop"] == [True] * 3


def test_a_silent_agent_is_the_one_that_hangs_and_is_given_up() -> None:
    group = Group().join(0, 1, 2)
    group.deaf = {2}
    for _ in range(14):
        for index in (0, 1):
            group.say(index, "beats", beats=[{"rank": index, "overdue": group.now > 1008, "age": 9.0}])
        group.wait(1)
    group.wait(40)
    assert cause(group) == ("WorkerHung", True)
    assert "worker 2 does not answer" in str(group.coordinator.last)
    assert group.coordinator.missing() == [2]


def test_one_late_word_is_no_hang() -> None:
    group = Group().join(0, 1, 2)
    beats(group)
    group.wait(0.4)
    beats(group, **{f"w{index}": {"overdue": False, "age": 0.1} for index in range(3)})
    group.wait(5)
    assert group.phase() is Phase.RUNNING


def test_who_holds_the_others_up_is_named_after_a_while() -> None:
    group = Group().join(0, 1, 2)
    for _ in range(30):
        for index, seconds in enumerate([0.1, 0.3, 0.11]):
            group.say(index, "beats", beats=[{"rank": index, "steps": 5, "compute": seconds}])
        group.wait(1)
        if group.now < 1015:
            assert not group.coordinator.stragglers, "a moment is nothing"
    assert group.coordinator.stragglers == {1: 3.0}
    for index in range(3):
        group.say(index, "beats", beats=[{"rank": index, "steps": 5, "compute": 0.1}])
    group.wait(1)
    assert not group.coordinator.stragglers


def test_the_time_that_a_failure_cost_is_told() -> None:
    group = Group().join(0, 1, 2)
    group.fail(1).wait(4)
    for index in range(3):
        group.say(index, "beats", beats=[{"rank": index, "step": 5, "steps": 1}])
    group.wait(0.2)
    assert group.coordinator.recovered == pytest.approx(4, abs=0.5)


def test_an_elastic_job_goes_on_with_fewer_and_takes_a_newcomer_in() -> None:
    group = Group(3, min_workers=2).join(0, 1)
    group.wait(FIRST_WAIT - 1)
    assert group.phase() is Phase.GATHERING, "at first all are waited for"
    group.join(2)
    assert group.start_of(0)["world"] == 3
    group.lose(2).fail(0, message="Connection reset by peer").wait(ELASTIC_WAIT + 2)
    assert group.start_of(0)["world"] == 2
    assert group.coordinator.restarts == 0
    group.join(2).wait(JOIN_AFTER)
    assert group.start_of(2)["world"] == 3
    stops = [item.message for item in group.told if item.message["type"] == "stop" and item.index == 0]
    assert stops[-1]["grace"] > 0, "what was done since the last checkpoint is saved"
    assert group.coordinator.restarts == 0


def test_too_few_for_an_elastic_job_are_waited_for() -> None:
    group = Group(3, min_workers=2).join(0, 1, 2).lose(1).lose(2).wait(120)
    assert group.phase() is Phase.GATHERING
    group.join(1).wait(ELASTIC_WAIT + 1)
    assert group.start_of(1)["world"] == 2


def test_the_end_of_all_is_the_end() -> None:
    group = Group().join(0, 1, 2)
    group.say(0, "done").say(1, "done")
    assert group.phase() is Phase.RUNNING
    group.say(2, "done")
    assert [group.kinds(index)[-1] for index in range(3)] == ["finish"] * 3


def probing(**preflight: Any) -> Group:
    """Three workers in three zones whose links are asked for."""
    group = Group(preflight=Preflight(**preflight))
    for index, zone in enumerate("abc"):
        group.join(index, zone=zone, node=f"n{index}")
    return group


def test_links_are_measured_before_the_first_round_and_not_again_in_the_same_pods() -> None:
    group = probing()
    assert group.phase() is Phase.PROBING
    assert [item.message["address"] for item in group.told] == ["10.0.0.1", "10.0.0.2", "10.0.0.0"]
    for index in range(3):
        group.say(index, "probed", roundTrip=0.001, bandwidth=1e9)
    assert group.phase() is Phase.RUNNING
    group.fail(1, message="boom").wait(SETTLING + 0.2)
    assert group.coordinator.round == 2
    group.lose(2).wait(GRACE + 0.4).join(2, zone="c", node="n3")
    assert group.phase() is Phase.PROBING, "a new pod has new links"


def test_a_dead_link_is_named_and_the_round_begins_once_it_works() -> None:
    group = probing()
    group.say(0, "probed", roundTrip=0.001, bandwidth=1e9).say(2, "probed", roundTrip=0.001, bandwidth=1e9)
    group.say(1, "probed", problem="10.0.0.2:29401 does not answer within 5 s")
    assert group.phase() is Phase.GATHERING
    assert group.coordinator.round == 0
    assert "from worker 1 (node n1, zone b) to worker 2 (node n2, zone c)" in group.coordinator.dead_links
    group.wait(PROBE_AGAIN + 0.4)
    assert group.phase() is Phase.PROBING
    for index in range(3):
        group.say(index, "probed", roundTrip=0.001, bandwidth=1e9)
    assert group.phase() is Phase.RUNNING
    assert not group.coordinator.dead_links


def test_a_link_that_stays_dead_ends_the_job_in_time() -> None:
    group = probing(timeout=20.0)
    while group.phase() is not Phase.ENDED:
        assert group.now < 1100, "twenty seconds, and the last measurement"
        if group.phase() is Phase.PROBING:
            for index in range(3):
                group.say(index, "probed", problem="connection refused")
        group.wait(1)
    ends = {item.index: item.message["code"] for item in group.told if item.message["type"] == "end"}
    assert ends[0] == 80


def test_a_slow_link_is_said_and_ends_the_job_only_where_asked() -> None:
    for fail, phase in ((False, Phase.RUNNING), (True, Phase.ENDED)):
        group = probing(min_bandwidth=1e8, fail=fail)
        for index, bandwidth in enumerate((1e9, 1e6, 1e9)):
            group.say(index, "probed", roundTrip=0.001, bandwidth=bandwidth)
        assert group.phase() is phase
        assert "worker 1 (node n1, zone b) to worker 2 (node n2, zone c) carries 1 MB/s" in group.coordinator.slow_links


def test_a_worker_that_is_lost_while_links_are_measured_is_waited_for() -> None:
    group = probing().lose(1)
    assert group.phase() is Phase.GATHERING
    group.join(1, zone="b", node="n9")
    assert group.phase() is Phase.PROBING


def test_an_agent_that_measures_nothing_counts_as_dead() -> None:
    group = probing()
    group.say(0, "probed", roundTrip=0.001, bandwidth=1e9).say(2, "probed", roundTrip=0.001, bandwidth=1e9)
    group.wait(PROBE_TIME + 0.4)
    assert "did not measure it in time" in group.coordinator.dead_links


def test_links_are_measured_again_after_a_hang() -> None:
    group = probing()
    for index in range(3):
        group.say(index, "probed", roundTrip=0.001, bandwidth=1e9)
    group.say(1, "beats", beats=[{"rank": 1, "step": 3, "overdue": True, "age": 9.0}]).wait(2)
    assert cause(group) == ("WorkerHung", True)
    assert group.phase() is Phase.PROBING
