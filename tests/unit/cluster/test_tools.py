"""Programs that have to be built: two at a time, those of one module after each other, each once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster import golang, tools
from cluster.golang import GoProgram
from cluster.process import ClusterError

K8S = ["kubelet", "kubeadm", "kubectl"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(golang, "go", lambda: Path("go"))


def test_one_module_is_built_in_turn_while_another_one_is_built_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    meeting = threading.Barrier(2, timeout=10)
    kubernetes = threading.Lock()

    def build(program: GoProgram, folder: Path) -> None:
        if program.in_kubernetes_module:
            assert kubernetes.acquire(blocking=False), "two programs of Kubernetes at a time"
        if program.name in ("kubelet", "helm"):
            meeting.wait()  # neither passes alone
        (folder / program.name).touch()
        built.append(program.name)
        if program.in_kubernetes_module:
            kubernetes.release()

    monkeypatch.setattr(golang, "build", build)
    found = tools.tools([*K8S, "helm"])
    assert [name for name in built if name in K8S] == K8S
    assert all(path.exists() for path in found.values())
    tools.tools([*K8S, "helm"])
    assert len(built) == 4, "nothing is built twice"


def test_a_build_that_fails_is_the_error_and_what_was_finished_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(program: GoProgram, folder: Path) -> None:
        if program.name == "kubeadm":
            raise ClusterError("go failed with exit code 1")
        (folder / program.name).touch()

    monkeypatch.setattr(golang, "build", build)
    with pytest.raises(ClusterError, match="go failed"):
        tools.tools(K8S)
    assert tools._path("kubelet").exists()
    assert not tools._path("kubectl").exists(), "nothing begins after a failure"
