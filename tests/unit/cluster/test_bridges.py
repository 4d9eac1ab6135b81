"""`make down` takes away what its own Docker daemon left, also while another checkout's daemon runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster import bridges

RULES = """\
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
-A FORWARD -o br-aaaaaaaaaaaa -j DOCKER
-A FORWARD -i br-bbbbbbbbbbbb -o br-bbbbbbbbbbbb -j ACCEPT
-A FORWARD -s 10.0.0.0/8 -j ACCEPT
COMMIT
"""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was run, with what was given to it."""
    ran: list[str] = []

    def output(command: Sequence[str | Path], *, stdin: str = "") -> str:
        ran.append(" ".join(map(str, command)) + "\n" + stdin)
        return RULES if command[0] == "iptables-save" else ""

    monkeypatch.setattr(bridges, "output", output)
    monkeypatch.setattr(bridges, "links", lambda: ["lo", "br-old", "docker0", "br-aaaaaaaaaaaa", "br-bbbbbbbbbbbb"])
    return ran


def restored(commands: list[str]) -> str:
    return next(command for command in commands if command.startswith("iptables-restore"))


def test_alone_everything_of_docker_goes_and_nothing_else(commands: list[str]) -> None:
    gone = bridges.bridges(["lo", "br-old"], [], shared=False)
    assert gone == ["docker0", "br-aaaaaaaaaaaa", "br-bbbbbbbbbbbb"]
    bridges.remove(gone, {"iptables": "ACCEPT"}, shared=False)
    assert "DOCKER" not in restored(commands)
    assert "br-" not in restored(commands)
    assert "10.0.0.0/8" in restored(commands)
    assert "iptables -P FORWARD ACCEPT\n" in commands


def test_another_daemon_keeps_its_bridge_its_rules_and_its_chains(commands: list[str]) -> None:
    gone = bridges.bridges(["lo", "br-old"], ["bbbbbbbbbbbb"], shared=True)
    assert gone == ["br-bbbbbbbbbbbb"]
    bridges.remove(gone, {"iptables": "ACCEPT"}, shared=True)
    assert "-A FORWARD -o br-aaaaaaaaaaaa -j DOCKER" in restored(commands)
    assert ":DOCKER - [0:0]" in restored(commands)
    assert "br-bbbbbbbbbbbb" not in restored(commands)
    assert "iptables -P FORWARD ACCEPT\n" not in commands
