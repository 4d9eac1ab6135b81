"""How a model is cut, who waits for whom, and frames: the parts of a parameter server that need no PyTorch."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.api.trainingjob import ParameterServer
from headrace.training.errors import ConfigurationError
from headrace.training.parameter_server.environment import server_settings
from headrace.training.parameter_server.layout import digest, shards
from headrace.training.parameter_server.membership import RETURN, SILENCE, Membership
from headrace.training.parameter_server.wire import Connection, Kind, WireError

SHAPES = [(7, 5), (7,), (), (3, 2, 4), (1, 9), (0, 4)]


@pytest.mark.parametrize("servers", [1, 2, 3, 8, 100])
def test_every_row_is_on_one_server_and_all_have_equal_parts(servers: int) -> None:
    parts = shards(SHAPES, servers)
    assert len(parts) == servers
    rows = sorted(
        (piece.tensor, row) for part in parts for piece in part.pieces for row in range(piece.start, piece.stop)
    )
    expected = [(index, row) for index, shape in enumerate(SHAPES) for row in range(shape[0] if shape else 1)]
    assert rows == expected
    total = sum(math.prod(shape) for shape in SHAPES)
    assert sum(part.size for part in parts) == total
    longest_row = 9
    assert max(part.size for part in parts) <= math.ceil(total / servers) + longest_row


def test_a_model_cut_otherwise_is_another_one() -> None:
    assert digest([(2, 3)], ["w"], 2) == digest([(2, 3)], ["w"], 2)
    others = [digest([(3, 2)], ["w"], 2), digest([(2, 3)], ["v"], 2), digest([(2, 3)], ["w"], 3)]
    assert digest([(2, 3)], ["w"], 2) not in others


def membership(workers: int = 3, **spec: Any) -> Membership:
    return Membership(workers, ParameterServer.model_validate(spec))


def test_the_fastest_waits_when_it_is_further_ahead_than_the_bound() -> None:
    group = membership(consistency="StaleSynchronous", staleness=2)
    for rank in range(3):
        group.join(rank, f"p{rank}", None, 0)
    group.members[0].clock = 2
    assert group.may_go_on(0, 0)
    group.members[0].clock = 3
    assert not group.may_go_on(0, 0)
    group.members[1].clock = group.members[2].clock = 1
    assert group.may_go_on(0, 0)


def test_a_worker_that_is_gone_silent_or_finished_holds_nobody_up() -> None:
    group = membership(consistency="StaleSynchronous", staleness=0)
    for rank in range(3):
        group.join(rank, f"p{rank}", None, 0)
    group.members[0].clock = 5
    assert not group.may_go_on(0, 1)
    group.left(1, "p1")
    group.finish(2)
    assert group.may_go_on(0, 1)
    group.join(1, "p1", 0, 1)
    assert not group.may_go_on(0, 1)
    group.members[0].seen = 1 + SILENCE
    assert group.may_go_on(0, 1 + SILENCE + 0.1)


def test_a_worker_that_joins_late_starts_where_the_slowest_is() -> None:
    group = membership()
    group.join(0, "a", None, 0).clock = 9
    group.join(1, "b", None, 0).clock = 7
    assert group.join(2, "c", None, 0).clock == 7
    group.members[2].step = 4
    group.left(2, "c")
    assert (group.join(2, "d", None, 0).step, group.join(2, "d", 11, 0).clock) == (4, 11)


def test_a_successor_is_not_taken_for_the_one_before() -> None:
    group = membership()
    group.join(0, "old", None, 0).sequence = 12
    group.join(0, "new", None, 0)
    group.left(0, "old")
    assert group.members[0].connected, "the end of the old connection came late"
    assert group.members[0].sequence == -1


def test_a_round_waits_for_those_who_never_came_and_not_for_those_who_left() -> None:
    group = membership(consistency="Synchronous")
    group.join(0, "a", None, 0)
    assert group.round_size(0) == 3
    group.join(1, "b", None, 0)
    group.join(2, "c", None, 0)
    group.left(2, "c")
    assert group.round_size(0) == 2
    group.join(2, "d", None, 0)
    assert group.round_size(0) == 2, "it has not sent anything yet, and may be about to join the next round"
    group.members[2].awaited = True
    assert group.round_size(0) == 3


def test_backup_workers_are_not_waited_for() -> None:
    group = membership(consistency="Synchronous", backupWorkers=1)
    for rank in range(3):
        group.join(rank, f"p{rank}", None, 0)
    assert group.round_size(0) == 2
    group.left(0, "p0")
    assert group.round_size(0) == 2, "that is what they are for"
    group.left(1, "p1")
    assert group.round_size(0) == 1


def test_a_server_that_came_back_waits_a_while_for_its_workers() -> None:
    before = membership(consistency="Synchronous")
    for rank in range(3):
        before.join(rank, f"p{rank}", None, 0)
    before.finish(2)
    after = membership(consistency="Synchronous")
    after.restore(before.facts(0), 100)
    after.join(0, "p0", 5, 100)
    assert after.round_size(100) == 2, "worker 1 is on its way, worker 2 has finished"
    assert after.round_size(100 + RETURN) == 1
    assert not after.all_finished
    after.finish(0)
    after.finish(1)
    assert after.all_finished


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection, socket.socket]]:
    listener = socket.create_server(("127.0.0.1", 0))
    raw = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    ends = Connection(raw), Connection(accepted)
    yield *ends, raw
    for end in ends:
        end.close()
    listener.close()


def test_a_frame_arrives_as_it_was_sent(pair: tuple[Connection, Connection, socket.socket]) -> None:
    left, right, _ = pair
    payload = bytes(range(256)) * 40_000
    sender = threading.Thread(target=left.send, args=(Kind.EXCHANGE, {"clock": 3}, [payload[:10], b"", payload[10:]]))
    sender.start()
    frame = right.receive(len(payload))
    sender.join()
    assert frame is not None
    assert (frame.kind, frame.header, frame.payload.tobytes()) == (Kind.EXCHANGE, {"clock": 3}, payload)
    assert left.sent == right.received
    left.close()
    assert right.receive(0) is None


def test_what_is_no_frame_or_too_large_is_refused(pair: tuple[Connection, Connection, socket.socket]) -> None:
    left, right, raw = pair
    left.send(Kind.EXCHANGE, {}, [bytes(100)])
    with pytest.raises(WireError, match=r"2 \+ 100 bytes, at most .* \+ 99 are taken"):
        right.receive(99)
    raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises(WireError, match="starts no frame"):
        right.receive(99)


def test_a_server_says_which_variable_is_wrong() -> None:
    good = {
        "HEADRACE_SERVERS": "a:1,b:2",
        "HEADRACE_SERVER_INDEX": "1",
        "HEADRACE_WORKERS": "3",
        "HEADRACE_TOPOLOGY": '{"type": "ParameterServer", "parameterServer": {"servers": 2}}',
    }
    assert (server_settings(good).port, server_settings(good).servers) == (2, 2)
    for name, value, words in (
        ("HEADRACE_SERVERS", "a", "'a' is no host:port"),
        ("HEADRACE_SERVERS", "", "not set"),
        ("HEADRACE_SERVER_INDEX", "2", "a whole number from 0 to 1"),
        ("HEADRACE_WORKERS", "many", "'many'"),
        ("HEADRACE_TOPOLOGY", "", "it is AllReduce"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            server_settings(good | {name: value})
