"""Links that are measured before training: what is dead or slow, who is named, and a measurement for real."""

from __future__ import annotations

import asyncio
import socket

from headrace.training.agent.preflight import Link, Place, Settings, dead, measure, serve, slow

A, B, C = Place(0, "n1", "a"), Place(1, "n2", "b"), Place(2, "n3", "c")


def ring(*bandwidths: float, problem: dict[int, str] | None = None) -> list[Link]:
    ends = [(A, B), (B, C), (C, A)]
    return [
        Link(source, target, 0.001, bandwidth, (problem or {}).get(index, ""))
        for index, ((source, target), bandwidth) in enumerate(zip(ends, bandwidths, strict=True))
    ]


def test_a_link_far_below_its_equals_is_named_with_node_and_zone() -> None:
    assert slow(ring(1e9, 1e8, 9e8), Settings()) == (
        "worker 1 (node n2, zone b) to worker 2 (node n3, zone c) carries 100 MB/s; links between zones carry 900 MB/s"
    )
    assert not slow(ring(1e9, 5e8, 9e8), Settings()), "networks vary by that much"


def test_bounds_of_the_spec_go_before_comparing() -> None:
    assert "less than 600 MB/s" in slow(ring(1e9, 5e8, 9e8), Settings(min_bandwidth=6e8))
    assert not slow(ring(1e9, 1e8, 9e8), Settings(min_bandwidth=1e7))
    assert slow(ring(1e9, 1e9, 1e9), Settings(max_round_trip=0.0005)).count("takes 1 ms there and back") == 3


def test_links_of_different_kinds_are_not_compared() -> None:
    near = [Link(Place(i, "n", "a"), Place(i + 1, "n", "a"), 0.0, 1e10) for i in range(4)]
    assert not slow([*near, Link(A, B, 0.0, 1e8)], Settings())


def test_a_worker_that_nobody_reaches_is_named() -> None:
    links = ring(0, 0, 1e9, problem={0: "10.0.0.2:29401 does not answer", 1: "timed out"})
    assert dead(links) == (
        "no connection from worker 0 (node n1, zone a) to worker 1 (node n2, zone b): 10.0.0.2:29401 does not answer; "
        "worker 1 (node n2, zone b) to worker 2 (node n3, zone c): timed out; "
        "worker 1 (node n2, zone b) is at the end of both: look at its network first"
    )
    assert not dead(ring(1, 1, 1))


async def test_a_real_link_is_measured() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    async with await serve("secret", "127.0.0.1", port):
        found = await measure("secret", "127.0.0.1", port)
        assert 0 < found["roundTrip"] < 1
        assert found["bandwidth"] > 1e6  # loopback
        stranger = await measure("guess", "127.0.0.1", port)
        assert "bandwidth" not in stranger
    closed = await asyncio.wait_for(measure("secret", "127.0.0.1", port), 10)
    assert f"127.0.0.1:{port}" in closed["problem"]
