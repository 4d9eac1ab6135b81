"""Which node image is taken, and what is said about it: by what the registries answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import host, hub, kind, nodeimage
from cluster.process import ClusterError


class Docker:
    """A daemon with these mirrors, that can pull or not."""

    def __init__(self, mirrors: list[str], *, pulls: bool = True, has: str = "") -> None:
        self.mirrors, self.pulls, self.has = mirrors, pulls, has
        self.pulled: list[str] = []

    def __call__(self, *arguments: str | Path) -> str:
        match arguments:
            case ("info", *_):
                return json.dumps(self.mirrors or None)
            case ("image", "ls", "--quiet", _):
                return self.has
            case ("pull", "--quiet", image):
                if not self.pulls:
                    raise ClusterError("`docker pull` failed with exit code 1: manifest unknown")
                self.pulled.append(str(image))
                return ""
        raise AssertionError(arguments)


@pytest.fixture
def mirror() -> Iterator[str]:
    """URL of something that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """URL of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def choose(
    monkeypatch: pytest.MonkeyPatch, docker: Docker, choice: kind.NodeChoice = "auto", *, hub_url: str
) -> kind.State:
    monkeypatch.setattr(host, "docker", docker)
    monkeypatch.setattr(hub, "HUB", hub_url)
    monkeypatch.setattr(nodeimage, "node_image", lambda: "headrace.dev/node:test")
    return kind._choose(choice)


def test_a_mirror_that_answers_is_taken_and_named(
    monkeypatch: pytest.MonkeyPatch, mirror: str, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    docker = Docker([f"{mirror}/"])
    assert choose(monkeypatch, docker, hub_url=nobody) == kind.State("stock", kind.STOCK_IMAGE)
    assert docker.pulled == [kind.STOCK_IMAGE]
    assert f"kind's image {kind.STOCK_IMAGE}, from {mirror}" in capsys.readouterr().err


def test_docker_hub_is_taken_where_there_is_no_mirror(monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    assert choose(monkeypatch, Docker([]), hub_url=mirror).nodes == "stock"


def test_the_offline_image_is_taken_where_nothing_answers_and_the_registries_are_named(
    monkeypatch: pytest.MonkeyPatch, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    docker = Docker([nobody])
    assert choose(monkeypatch, docker, hub_url="https://127.0.0.1:9").nodes == "offline"
    assert docker.pulled == []
    said = capsys.readouterr().err
    assert f"since {nobody.removeprefix('http://')} and 127.0.0.1:9 cannot be reached" in said


def test_the_offline_image_is_taken_where_the_registry_has_no_such_image(
    monkeypatch: pytest.MonkeyPatch, mirror: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose(monkeypatch, Docker([], pulls=False), hub_url=mirror).nodes == "offline"
    assert "manifest unknown" in capsys.readouterr().err


def test_who_asks_for_the_stock_image_gets_it_or_the_error(monkeypatch: pytest.MonkeyPatch, nobody: str) -> None:
    assert choose(monkeypatch, Docker([]), "stock", hub_url=nobody).nodes == "stock"
    with pytest.raises(ClusterError, match="manifest unknown"):
        choose(monkeypatch, Docker([], pulls=False), "stock", hub_url=nobody)


def test_an_image_that_docker_has_needs_no_registry(monkeypatch: pytest.MonkeyPatch, nobody: str) -> None:
    docker = Docker([], has="sha256:1", pulls=False)
    assert choose(monkeypatch, docker, hub_url=nobody) == kind.State("stock", kind.STOCK_IMAGE)


def daemon_config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads(host._daemon_config(folder, folder / "data", folder / "sock").read_text())
    return config


def test_the_daemon_that_is_started_here_is_given_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "registry-mirrors" not in daemon_config(tmp_path)
    monkeypatch.setenv("HEADRACE_REGISTRY_MIRROR", "https://mirror.example, http://10.0.0.1:5000")
    assert daemon_config(tmp_path)["registry-mirrors"] == ["https://mirror.example", "http://10.0.0.1:5000"]


@pytest.mark.parametrize("wrong", ["mirror.example", "ftp://mirror.example", "https://"])
def test_what_is_no_url_of_a_mirror_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("HEADRACE_REGISTRY_MIRROR", wrong)
    with pytest.raises(ClusterError, match=r"HEADRACE_REGISTRY_MIRROR is .*write the URL of a mirror"):
        daemon_config(tmp_path)
