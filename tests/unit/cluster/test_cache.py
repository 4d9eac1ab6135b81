"""What was built is complete or absent, whoever interrupts, and is built once."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest

from cluster import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_an_interrupted_build_leaves_nothing_and_the_next_one_starts_clean() -> None:
    folder = cache.root() / "tools" / "thing-1"

    def interrupted(part: Path) -> None:
        (part / "half").write_text("half")
        raise KeyboardInterrupt

    def complete(part: Path) -> None:
        assert not list(part.iterdir())
        (part / "whole").write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        cache.produce(folder, interrupted)
    assert not folder.exists()
    assert [path.name for path in cache.produce(folder, complete).iterdir()] == ["whole"]


def _produce(folder: Path, count: Path) -> None:
    def build(part: Path) -> None:
        with count.open("a") as file:
            file.write("built\n")

    cache.produce(folder, build)


def test_runs_that_want_the_same_thing_at_the_same_time_build_it_once(tmp_path: Path) -> None:
    folder, count = cache.root() / "tools" / "thing-1", tmp_path / "count"
    context = get_context("spawn")
    processes = [context.Process(target=_produce, args=(folder, count)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert count.read_text() == "built\n"


def test_the_hash_of_files_knows_names_and_bytes_and_ignores_byte_code(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "__pycache__").mkdir(parents=True)
    (source / "a.py").write_text("1")
    first = cache.digest_files(tmp_path, [source])
    (source / "__pycache__" / "a.pyc").write_text("x")
    assert cache.digest_files(tmp_path, [source]) == first
    (source / "a.py").rename(source / "b.py")
    renamed = cache.digest_files(tmp_path, [source])
    assert renamed != first
    (source / "b.py").write_text("2")
    assert cache.digest_files(tmp_path, [source]) not in (first, renamed)
