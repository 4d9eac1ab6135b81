"""Steps that run side by side: all of them, or the error of the first that fails."""

from __future__ import annotations

import threading

import pytest

from cluster.process import ClusterError, side_by_side


def test_steps_run_at_the_same_time_as_what_is_done_meanwhile() -> None:
    # Each waits for all others: one after another they would never pass.
    barrier = threading.Barrier(3, timeout=10)
    with side_by_side([barrier.wait, barrier.wait]):
        barrier.wait()


def test_no_more_than_the_lanes_allow_run_at_a_time_and_the_first_come_first() -> None:
    seen: list[str] = []
    first_is_done = threading.Event()

    def first() -> None:
        seen.append("first")
        first_is_done.set()

    def second() -> None:
        assert first_is_done.is_set()
        seen.append("second")

    with side_by_side([first, second], lanes=1):
        pass
    assert seen == ["first", "second"]


def test_the_error_of_a_step_comes_out_and_no_further_step_begins() -> None:
    begun: list[str] = []

    def fails() -> None:
        raise ClusterError("no network; check GOPROXY")

    with (
        pytest.raises(ClusterError, match="check GOPROXY"),
        side_by_side([fails, lambda: begun.append("later")], lanes=1),
    ):
        pass
    assert not begun


def test_an_interrupt_waits_for_what_runs_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    go_on, runs = threading.Event(), threading.Event()
    ended: list[str] = []

    def slow() -> None:
        runs.set()
        assert go_on.wait(10)
        ended.append("slow")

    def interrupted() -> None:
        with side_by_side([slow, lambda: ended.append("later")], lanes=1):
            assert runs.wait(10)
            threading.Timer(0.2, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended == ["slow"]
    assert "waiting for what still runs" in capsys.readouterr().err


def test_nothing_to_run_is_fine() -> None:
    with side_by_side([]):
        pass
