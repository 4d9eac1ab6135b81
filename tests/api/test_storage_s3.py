"""The store against a real S3 server (versitygw, the chart's embedded one) on loopback, and against none."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cluster.tools import tool
from headrace.storage import AccessDenied, NotFound, Store, Unreachable, download
from headrace.storage.filesystem import ATTEMPTS, STALL_TIMEOUT

KEY, SECRET = "test-key", "test-secret"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Credentials of a server with the bucket `data`."""
    root = tmp_path_factory.mktemp("s3")
    (root / "buckets" / "data").mkdir(parents=True)
    (root / "meta").mkdir()
    port = free_port()
    options = ["--port", f"127.0.0.1:{port}", "--access", KEY, "--secret", SECRET, "--quiet"]
    server = subprocess.Popen([tool("versitygw"), *options, "posix", "--sidecar", root / "meta", root / "buckets"])
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"versitygw did not start (exit code {server.poll()})")
                time.sleep(0.05)
        yield {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.parametrize("size", [0, 1_000, 12_000_000], ids=["empty", "one PUT", "multipart"])
def test_bytes_survive_a_round_trip(s3: dict[str, str], size: int) -> None:
    store = Store.open("s3://data/round-trip", s3)
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    store.write_bytes(f"deep/folder/{size}", content)
    assert store.read_bytes(f"deep/folder/{size}") == content


def test_what_is_written_is_listed_downloaded_and_deleted(s3: dict[str, str], tmp_path: Path) -> None:
    store = Store.open("s3://data/run", s3)
    store.write_bytes("model/model.onnx", b"onnx")
    store.write_bytes("model/sub/labels", b"a b")

    assert [(e.path, e.is_folder) for e in store.list("model")] == [("model.onnx", False), ("sub", True)]
    assert store.exists("model")
    assert store.is_folder("model")
    assert not store.exists("mode")
    assert (download("s3://data/run/model", tmp_path, s3) / "sub" / "labels").read_bytes() == b"a b"
    assert download("s3://data/run/model/model.onnx", tmp_path / "file", s3).read_bytes() == b"onnx"
    store.delete("model")
    assert not store.exists("model/model.onnx")
    assert store.list("model") == []
    store.delete("model")


def test_a_missing_object_and_a_missing_bucket_are_told_apart(s3: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"s3://data/run/nothing: not found"):
        Store.open("s3://data/run", s3).read_bytes("nothing")
    store = Store.open("s3://no-such-bucket/run", s3)
    fetch = partial(download, "s3://no-such-bucket/run", tmp_path, s3)
    for attempt in (lambda: store.write_bytes("x", b"x"), lambda: store.read_bytes("x"), store.list, fetch):
        with pytest.raises(NotFound, match=r"s3://no-such-bucket/run.*: the bucket does not exist at http://127"):
            attempt()


@pytest.mark.parametrize("wrong", [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "nobody"}])
def test_wrong_credentials_are_denied_with_the_names_to_check(s3: dict[str, str], wrong: dict[str, str]) -> None:
    store = Store.open("s3://data/run", s3 | wrong)
    for attempt in (lambda: store.write_bytes("x", b"x"), lambda: store.read_bytes("x"), store.list):
        with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            attempt()


def test_a_store_that_is_down_is_known_soon() -> None:
    credentials = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
    }
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"no answer at http://127.0.0.1:\d+: .*check AWS_ENDPOINT_URL") as caught:
        Store.open("s3://data/run", credentials).read_bytes("x")
    assert caught.value.retryable
    assert time.monotonic() - started < 30


def test_a_store_that_accepts_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert STALL_TIMEOUT * ATTEMPTS < 60
    monkeypatch.setattr("headrace.storage.filesystem.STALL_TIMEOUT", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        credentials = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        started = time.monotonic()
        with pytest.raises(Unreachable, match="no answer"):
            Store.open("s3://data/run", credentials).read_bytes("x")
        assert time.monotonic() - started < 20
