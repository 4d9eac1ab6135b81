"""The store over local files: what a user of any filesystem relies on."""

from __future__ import annotations

import errno
import io
import threading
from pathlib import Path

import pytest
from pyarrow import fs

from headrace.storage import (
    AccessDenied,
    Credentials,
    InvalidLocation,
    NotFound,
    StorageError,
    StorageFull,
    Store,
    Unreachable,
    download,
)
from headrace.storage.errors import translate
from headrace.storage.filesystem import Location


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"file://{tmp_path}/run")


def test_what_is_written_is_read_listed_and_deleted(store: Store) -> None:
    store.write_bytes("model/model.onnx", b"onnx")
    store.write_bytes("model/metrics.json", b"{}")
    store.write_bytes("model/metrics.json", b"{ }")

    assert store.read_bytes("model/metrics.json") == b"{ }"
    assert [(e.path, e.size, e.is_folder) for e in store.list("model")] == [
        ("metrics.json", 3, False),
        ("model.onnx", 4, False),
    ]
    assert [(e.path, e.is_folder) for e in store.list()] == [("model", True)]
    assert [e.path for e in store.list(recursive=True)] == ["model", "model/metrics.json", "model/model.onnx"]
    store.delete("model")
    assert not store.exists("model")
    store.delete("model")


def test_a_folder_that_does_not_exist_is_empty(store: Store) -> None:
    assert store.list("nothing/here") == []
    assert not store.exists("nothing")


def test_a_reader_never_sees_a_part_of_a_write(store: Store) -> None:
    contents = [bytes([n]) * 1_000_000 for n in range(2)]
    store.write_bytes("file", contents[0])
    done = threading.Event()

    def write() -> None:
        for n in range(40):
            store.write_bytes("file", contents[n % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set() or reads == 0:
        assert store.read_bytes("file") in contents
        assert len(store.list()) == 1, "a temporary file shows"
        reads += 1
    writer.join()


def test_a_failed_write_leaves_the_old_content_and_no_rubbish(store: Store, tmp_path: Path) -> None:
    store.write_bytes("file", b"old")
    with pytest.raises(StorageError, match="file/below"):
        store.write_bytes("file/below", b"new")
    assert store.read_bytes("file") == b"old"
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["file"]


def test_download_copies_a_folder_or_a_file(store: Store, tmp_path: Path) -> None:
    store.write_bytes("model/model.onnx", b"onnx")
    store.write_bytes("model/more/labels.txt", b"a b")

    folder = download(store.uri_of("model"), tmp_path / "local")
    assert folder == tmp_path / "local" / "model"
    assert (folder / "more" / "labels.txt").read_bytes() == b"a b"
    file = download(store.uri_of("model/model.onnx"), tmp_path / "other")
    assert file.read_bytes() == b"onnx"
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["model.onnx"]


def test_what_is_missing_is_named_with_its_whole_uri(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"file://{tmp_path}/run/model/model.onnx: not found"):
        store.read_bytes("model/model.onnx")
    with pytest.raises(NotFound, match="there is nothing here"):
        download(store.uri_of("model"), tmp_path)


def test_a_folder_is_a_store_of_its_own(store: Store) -> None:
    inner = store.folder("checkpoints")
    inner.write_bytes("step-1/a", b"1")
    assert inner.uri == store.uri + "/checkpoints"
    assert store.read_bytes("checkpoints/step-1/a") == b"1"


@pytest.mark.parametrize("path", ["../other", "a/../../b", "/etc/passwd"])
def test_paths_do_not_lead_out_of_the_store(store: Store, path: str) -> None:
    with pytest.raises(InvalidLocation, match="outside"):
        store.read_bytes(path)


@pytest.mark.parametrize(
    ("uri", "credentials", "message"),
    [
        ("gs://bucket/x", {}, "use s3://, hdfs:// or file://"),
        ("/plain/path", {}, "use s3://, hdfs:// or file://"),
        ("s3:///key", {}, "names no bucket"),
        ("file://host/x", {}, "three slashes"),
        ("s3://b/x", {"AWS_ENDPOINT_URL": "store:9000", "AWS_ACCESS_KEY_ID": "a"}, "write http://host:port"),
        ("s3://b/x", {"AWS_ENDPOINT_URL": "http://store:9000"}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://b/x", {"AWS_ACCESS_KEY_ID": "a"}, "AWS_SECRET_ACCESS_KEY is empty"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_remedy(uri: str, credentials: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidLocation) as caught:
        Store.open(uri, credentials)
    assert message in str(caught.value)
    assert uri in str(caught.value)


def test_credentials_come_from_a_mounted_secret(tmp_path: Path) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "key\n", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-1"}.items():
        (tmp_path / name).write_text(value)
    credentials = Credentials.from_directory(tmp_path)
    assert (credentials.access_key_id, credentials.secret_access_key, credentials.region) == ("key", "secret", "eu-1")
    assert "secret" not in repr(credentials).split("secret_access_key")[-1]


def test_a_secret_with_other_keys_is_told_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "accessKey").write_text("x")
    with pytest.raises(InvalidLocation, match=r"has the keys accessKey; it needs AWS_ACCESS_KEY_ID"):
        Credentials.from_directory(tmp_path)


def test_credentials_of_the_environment_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-env")
    assert Credentials.of(None).access_key_id == "from-env"
    assert Credentials.of({"AWS_ACCESS_KEY_ID": "given"}).access_key_id == "given"


def test_hdfs_without_its_client_says_what_the_image_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HADOOP_HOME", "ARROW_LIBHDFS_DIR", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidLocation, match=r"hdfs://namenode:8020/x: this image has no HDFS client"):
        Store.open("hdfs://namenode:8020/x")


def test_permission_errors_are_access_denied() -> None:
    error = translate(PermissionError(13, "Permission denied"), "file:///x")
    assert isinstance(error, AccessDenied)
    assert "owner and mode" in error.remedy


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        # What Arrow makes of versitygw's and MinIO's answers.
        OSError(
            "When uploading part for key 'a' in bucket 'b': AWS Error UNKNOWN (HTTP status 403) during UploadPart "
            "operation: Unable to parse ExceptionName: QuotaExceeded Message: Your request was denied due to quota."
        ),
        OSError("AWS Error UNKNOWN (HTTP status 507) during PutObject operation: Unable to parse ExceptionName: X"),
        OSError("org.apache.hadoop.hdfs.protocol.DSQuotaExceededException: The DiskSpace quota of /runs is exceeded"),
    ],
)
def test_a_full_store_is_told_from_one_that_refuses(error: OSError) -> None:
    found = translate(error, "s3://b/a")
    assert isinstance(found, StorageFull)
    assert found.retryable
    assert "raise the quota" in found.remedy


class Ending:
    """The filesystem of an S3 server that is just ending: a write is answered with 404 though the bucket is there."""

    def __init__(self, *, bucket: bool) -> None:
        self._bucket = fs.FileType.Directory if bucket else fs.FileType.NotFound

    def open_output_stream(self, path: str) -> object:
        raise OSError(
            f"When completing multiple part upload for key '{path}': AWS Error NO_SUCH_KEY during PutObject operation: "
            "The specified key does not exist."
        )

    def get_file_info(self, what: object) -> object:
        return fs.FileInfo("lake", self._bucket) if isinstance(what, str) else []


def test_a_write_that_finds_nothing_is_tried_again_unless_the_bucket_is_missing() -> None:
    # RFC 9110 lets a server answer any request with 404; S3's PutObject has no such error but NoSuchBucket.
    store = Store("s3://lake/run", Location("s3", Ending(bucket=True), "lake/run", "http://s3.example"))
    with pytest.raises(Unreachable, match=r"s3://lake/run/x: http://s3.example had the bucket") as caught:
        store.write_bytes("x", b"x")
    assert caught.value.retryable
    store = Store("s3://lake/run", Location("s3", Ending(bucket=False), "lake/run", "http://s3.example"))
    with pytest.raises(NotFound, match=r"the bucket does not exist at http://s3\.example"):
        store.write_bytes("x", b"x")


def test_a_bucket_that_was_written_to_is_not_believed_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(bucket=False)
    store = Store("s3://lake/run", Location("s3", ending, "lake/run", "http://s3.example"))
    refused = ending.open_output_stream
    monkeypatch.setattr(ending, "open_output_stream", lambda path: io.BytesIO(), raising=False)
    store.write_bytes("run.json", b"{}")
    monkeypatch.setattr(ending, "open_output_stream", refused)
    with pytest.raises(Unreachable, match="see whether the bucket is still there"):
        store.folder("checkpoints").write_bytes("x", b"x")
