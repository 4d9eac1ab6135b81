"""What a resumed run finds after crashes, damaged files and namesakes."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

import pytest

from headrace.api.trainingjob import Best
from headrace.storage import StorageError, StorageFull, Store
from headrace.training.checkpoint_folder import CheckpointFolder, Owner, PartMissing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def folder(path: Path, keep: int = 2, **owner: object) -> CheckpointFolder:
    return CheckpointFolder(Store.open(f"file://{path}"), Owner(**owner), keep)  # type: ignore[arg-type]


def save(target: CheckpointFolder, *steps: int) -> None:
    for step in steps:
        target.save(step, {"safetensors": b"tensors %d" % step, "json": b"{}"})


def test_the_latest_is_loaded_and_only_so_many_are_kept(path: Path) -> None:
    save(folder(path, keep=2), 5, 10, 100)
    loaded = folder(path).latest()
    assert loaded is not None
    assert (loaded.step, loaded.files) == (100, {"safetensors": b"tensors 100", "json": b"{}"})
    assert sorted(p.name for p in path.iterdir()) == ["step-10", "step-100"]


def test_nothing_saved_is_nothing_found(path: Path) -> None:
    assert folder(path).latest() is None


@pytest.mark.parametrize("damage", ["unfinished", "flipped", "short", "missing", "no json", "another step"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder(path), 10, 20)
    data, manifest = path / "step-20" / "attempt-1.safetensors", path / "step-20" / "manifest.json"
    match damage:
        case "unfinished":
            manifest.unlink()
        case "flipped":
            data.write_bytes(b"tensorZ 20")
        case "short":
            data.write_bytes(b"tens")
        case "missing":
            data.unlink()
        case "no json":
            manifest.write_text("{")
        case "another step":
            manifest.write_text((path / "step-10" / "manifest.json").read_text())
    with caplog.at_level(logging.WARNING):
        loaded = folder(path).latest()
    assert loaded is not None
    assert loaded.step == 10
    assert f"file://{path}/step-20" in caplog.text


def test_saving_goes_on_after_a_damaged_one_which_is_removed(path: Path) -> None:
    save(folder(path), 10, 20)
    (path / "step-20" / "attempt-1.json").write_bytes(b"x")
    save(folder(path, attempt=2), 15, 20, 30)
    loaded = folder(path).latest()
    assert loaded is not None
    assert (loaded.step, sorted(p.name for p in path.iterdir())) == (30, ["step-20", "step-30"])


def test_a_new_run_of_the_same_name_starts_afresh_and_clears_the_old(path: Path) -> None:
    save(folder(path, run_id="old"), 500)
    new = folder(path, run_id="new")
    assert new.latest() is None
    save(new, 20)
    assert [p.name for p in path.iterdir()] == ["step-20"]


def test_another_configuration_is_not_resumed(path: Path) -> None:
    save(folder(path, fingerprint="64 units"), 500)
    assert folder(path, fingerprint="32 units").latest() is None
    resumed = folder(path, fingerprint="64 units").latest()
    assert resumed is not None


def test_a_worker_of_an_earlier_attempt_cannot_harm_its_successor(path: Path) -> None:
    old, new = folder(path, attempt=1), folder(path, attempt=2)
    save(old, 10)
    save(new, 20, 30)
    # Cut off from the cluster, not from storage: it writes what it has, late.
    old.save(20, {"safetensors": b"other bytes", "json": b"{}"})
    loaded = folder(path, attempt=3).latest()
    assert loaded is not None
    assert (loaded.step, loaded.files["safetensors"]) == (30, b"tensors 30")
    names = {file["name"] for file in json.loads((path / "step-30" / "manifest.json").read_text())["files"].values()}
    assert names == {"attempt-2.safetensors", "attempt-2.json"}


def test_what_a_successor_is_still_writing_is_left_alone(path: Path) -> None:
    old, new = folder(path, attempt=1), folder(path, attempt=2)
    save(new, 10)
    # A save without its manifest, as it is while the tensors are being uploaded.
    save(new, 20)
    (path / "step-20" / "manifest.json").unlink()
    save(old, 15)
    names = {item.name for item in (path / "step-20").iterdir()}
    assert names == {"attempt-2.safetensors", "attempt-2.json", "attempt-2.part-0.json"}


def test_an_interrupted_save_leaves_the_one_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder(path)
    save(target, 10)
    write = Store.write_bytes

    def fail_at_manifest(self: Store, name: str, data: bytes) -> None:
        if name.endswith("manifest.json"):
            raise StorageError(name, "the power went out")
        write(self, name, data)

    monkeypatch.setattr(Store, "write_bytes", fail_at_manifest)
    with pytest.raises(StorageError):
        save(target, 20)
    loaded = folder(path).latest()
    assert loaded is not None
    assert loaded.step == 10


def test_a_checkpoint_of_several_workers_is_whole_when_all_parts_are(path: Path) -> None:
    first, second = folder(path, session="ab"), folder(path, session="ab")
    save(folder(path), 10)
    second.write_part(20, 1, {"shard-1.safetensors": b"right"}, {"pieces": {"w": ["shard-1.safetensors", [2], [2]]}})
    loaded = folder(path).latest()
    assert loaded is not None
    assert loaded.step == 10, "a part is no checkpoint"
    first.write_part(20, 0, {"shard-0.safetensors": b"left"}, {"pieces": {"w": ["shard-0.safetensors", [0], [2]]}})
    manifest = first.commit(20, 2)
    loaded = folder(path).latest()
    assert loaded is not None
    assert loaded.files == {"shard-0.safetensors": b"left", "shard-1.safetensors": b"right"}
    assert manifest["pieces"]["w"] == [["shard-0.safetensors", [0], [2]], ["shard-1.safetensors", [2], [2]]]


def test_a_worker_that_wrote_no_part_is_named_and_the_one_before_stays(path: Path) -> None:
    save(folder(path), 10)
    late = folder(path, session="ab")
    folder(path, session="another").write_part(20, 1, {}, {})  # of a session that ended
    late.write_part(20, 0, {"json": b"{}"}, {})
    with pytest.raises(PartMissing, match="worker 1 wrote no part of this checkpoint within 0 s") as caught:
        late.commit(20, 2, timeout=0)
    assert caught.value.retryable
    loaded = folder(path).latest()
    assert loaded is not None
    assert loaded.step == 10


def test_parts_of_workers_that_are_gone_do_not_hold_up_a_run_that_failed(path: Path) -> None:
    """The default wait is a minute: a worker killed in the middle of a save would delay the restart by it."""
    ours = folder(path, session="ab")
    ours.write_part(20, 0, {"json": b"{}"}, {})
    threading.Timer(0.2, ours.failed.set).start()
    started = time.monotonic()
    with pytest.raises(PartMissing, match="worker 1 wrote no part"):
        ours.commit(20, 2)
    assert time.monotonic() - started < 20


def test_parts_that_are_on_their_way_when_a_run_fails_still_make_a_checkpoint(path: Path) -> None:
    ours, other = folder(path, session="ab"), folder(path, session="ab")
    ours.write_part(20, 0, {"json": b"{}"}, {})
    ours.failed.set()
    threading.Timer(0.2, other.write_part, (20, 1, {}, {})).start()
    assert ours.commit(20, 2)["step"] == 20


@pytest.mark.parametrize(("mode", "best"), [("Min", 20), ("Max", 40)])
def test_the_best_is_kept_besides_the_last_ones(path: Path, mode: str, best: int) -> None:
    target = CheckpointFolder(Store.open(f"file://{path}"), keep=2, best=Best(metric="loss", mode=mode))
    for step, loss in ((10, 0.5), (20, 0.1), (30, 0.4), (40, 0.9), (50, 0.3), (60, 0.2)):
        target.save(step, {"json": b"{}"}, {"loss": loss})
    target.save(70, {"json": b"{}"})
    assert target.steps() == [70, 60, best]
    assert [manifest["step"] for manifest in target.candidates()] == [70, 60, best]
    assert [manifest["step"] for manifest in target.candidates(best=True)] == [best, 70, 60]


def test_a_full_store_costs_the_checkpoint_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder(path)
    save(target, 10)
    write = Store.write_bytes

    def full(self: Store, name: str, data: bytes) -> None:
        if name.endswith(".json"):
            raise StorageFull(name, "there is no room left")
        write(self, name, data)

    monkeypatch.setattr(Store, "write_bytes", full)
    with pytest.raises(StorageFull):
        save(target, 20)
    monkeypatch.undo()
    assert list((path / "step-20").iterdir()) == [], "what was written of it takes no room"
    loaded = folder(path).latest()
    assert loaded is not None
    assert loaded.step == 10
