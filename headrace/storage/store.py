"""A folder in storage, and the operations that everything else is made of.

Writes are atomic: a reader sees the old bytes or the new ones, never a part. In S3 that is how a PUT and a completed
multipart upload work; elsewhere the bytes go to a temporary file beside the target, which is renamed.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs

from headrace.storage.credentials import Credentials
from headrace.storage.errors import InvalidLocation, NotFound, Unreachable, missing_bucket, translate
from headrace.storage.filesystem import Location, locate

_TEMPORARY = ".headrace-"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a folder: its path relative to what was listed, its size in bytes (0 for a folder), its kind."""

    path: str
    size: int
    is_folder: bool


class Store:
    """A folder (or a single file, with the path "") named by a URI.

    Every method takes a path relative to the URI and raises a StorageError that names the whole URI.
    """

    def __init__(self, uri: str, location: Location, written: threading.Event | None = None) -> None:
        self.uri = uri.rstrip("/")
        self._location = location
        # Set once something was written here, by this store or one of a folder in it.
        self._written = written or threading.Event()

    @classmethod
    def open(cls, uri: str, credentials: Credentials | Mapping[str, str] | Path | None = None) -> Store:
        """The store at `uri`.

        Args:
            uri: `s3://bucket/path`, `hdfs://namenode:port/path` or `file:///path`.
            credentials: AWS_* values as a mapping, as a folder with one file per name (a mounted Secret), or None for
                the environment's.

        Raises:
            InvalidLocation: the URI or the credentials cannot be used.
        """
        return cls(uri, locate(uri, Credentials.of(credentials)))

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem`, for libraries that read through one; wrap its use in `errors`."""
        return self._location.filesystem

    def path_of(self, path: str = "") -> str:
        """The path inside `filesystem` of a path relative to the URI."""
        if ".." in PurePosixPath(path).parts or path.startswith("/"):
            raise InvalidLocation(self.uri, f"the path {path!r} leads outside of it")
        return f"{self._location.path.rstrip('/')}/{path}" if path else self._location.path

    def uri_of(self, path: str = "") -> str:
        """The URI of a path relative to this store's."""
        return f"{self.uri}/{path}" if path else self.uri

    def folder(self, path: str) -> Store:
        """The store of a folder in this one; it need not exist."""
        location = self._location
        inner = Location(location.scheme, location.filesystem, self.path_of(path), location.server)
        return Store(self.uri_of(path), inner, self._written)

    @contextmanager
    def errors(self, path: str = "") -> Iterator[None]:
        """OSErrors of the block as StorageErrors of `path`."""
        try:
            yield
        except FileNotFoundError as error:
            self.require_bucket(path)
            raise translate(error, self.uri_of(path), self._location.server) from error
        except OSError as error:
            raise translate(error, self.uri_of(path), self._location.server) from error

    def read_bytes(self, path: str = "") -> bytes:
        """The whole file."""
        with self.errors(path), self.filesystem.open_input_stream(self.path_of(path)) as stream:
            return bytes(stream.read())

    def write_bytes(self, path: str, data: bytes | memoryview) -> None:
        """Write the whole file atomically; folders on the way are made."""
        target = self.path_of(path)
        with self.errors(path):
            if self._location.scheme == "s3":
                with self._nothing_to_find(path):
                    self._write(target, data)
                self._written.set()
                return
            parent, _, name = target.rpartition("/")
            self.filesystem.create_dir(parent, recursive=True)
            temporary = f"{parent}/{_TEMPORARY}{uuid.uuid4().hex}.{name}"
            try:
                self._write(temporary, data)
                self._rename(temporary, target)
            except OSError:
                self._discard(temporary)
                raise

    def exists(self, path: str = "") -> bool:
        """Whether there is a file or a folder at `path`."""
        with self.errors(path):
            return bool(self._info(path).type != fs.FileType.NotFound)

    def is_folder(self, path: str = "") -> bool:
        """Whether there is a folder at `path`."""
        with self.errors(path):
            return bool(self._info(path).type == fs.FileType.Directory)

    def list(self, path: str = "", recursive: bool = False) -> list[Entry]:
        """What is in the folder, in order of name; nothing where there is no folder."""
        base = self.path_of(path)
        selector = fs.FileSelector(base, recursive=recursive, allow_not_found=True)
        with self.errors(path):
            found = self.filesystem.get_file_info(selector)
            if not found:
                self.require_bucket(path)
        entries = [
            Entry(info.path[len(base) :].lstrip("/"), int(info.size or 0), bool(info.type == fs.FileType.Directory))
            for info in found
            if not info.base_name.startswith(_TEMPORARY)
        ]
        return sorted(entries, key=lambda entry: entry.path)

    def delete(self, path: str = "") -> None:
        """Remove a file, or a folder with all that is in it; what is not there is fine."""
        with self.errors(path):
            kind = self._info(path).type
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path_of(path))
            elif kind != fs.FileType.NotFound:
                self.filesystem.delete_file(self.path_of(path))

    def download(self, path: str, directory: Path) -> Path:
        """Copy a file, or a folder with all that is in it, into a local directory, which is made.

        Returns:
            The local file or folder; it has the name that it has in storage. A file appears whole or not at all.

        Raises:
            NotFound: there is nothing at `path`.
        """
        name = PurePosixPath(self.path_of(path)).name
        if self.is_folder(path):
            folder = directory / name
            folder.mkdir(parents=True, exist_ok=True)
            for entry in self.list(path, recursive=True):
                if not entry.is_folder:
                    inner = f"{path}/{entry.path}" if path else entry.path
                    self._fetch(inner, folder / entry.path)
            return folder
        self._fetch(path, directory / name)
        return directory / name

    def _fetch(self, path: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}.{target.name}")
        try:
            with self.errors(path):
                fs.copy_files(
                    self.path_of(path), str(temporary), self.filesystem, fs.LocalFileSystem(), chunk_size=8 << 20
                )
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def require_bucket(self, path: str = "") -> None:
        """Raise the true reason where S3 says no more than that something is not there.

        The answer to a HEAD request has no body: an unknown key, a missing bucket and a missing object look alike.
        """
        if self._location.scheme != "s3":
            return
        target = self.path_of(path)
        try:
            self.filesystem.get_file_info(fs.FileSelector(target, allow_not_found=True))
            bucket = self.filesystem.get_file_info(target.partition("/")[0])
        except OSError as error:
            raise translate(error, self.uri_of(path), self._location.server) from error
        if bucket.type == fs.FileType.NotFound:
            raise missing_bucket(self.uri_of(path), self._location.server)

    @contextmanager
    def _nothing_to_find(self, path: str) -> Iterator[None]:
        """A write asks for nothing that could be missing but the bucket, and not even that where it was written to
        before: a store that is just ending or just beginning says so all the same, and cannot work now.
        """
        try:
            yield
        except OSError as error:
            if isinstance(translate(error, self.uri_of(path), self._location.server), NotFound):
                if not self._written.is_set():
                    self.require_bucket(path)
                raise Unreachable(
                    self.uri_of(path),
                    f"{self._location.server} had the bucket and did not take the file: {' '.join(str(error).split())}",
                    "see whether the bucket is still there, and the store's log",
                ) from error
            raise

    def _info(self, path: str) -> Any:
        return self.filesystem.get_file_info(self.path_of(path))

    def _write(self, target: str, data: bytes | memoryview) -> None:
        if self._location.scheme == "file":
            with Path(target).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return
        with self.filesystem.open_output_stream(target) as stream:
            stream.write(data)

    def _rename(self, temporary: str, target: str) -> None:
        if self._location.scheme == "file":
            Path(temporary).replace(target)
            return
        # HDFS refuses to rename onto an existing file: readers may see none for a moment, never a part.
        if self.filesystem.get_file_info(target).type == fs.FileType.File:
            self.filesystem.delete_file(target)
        self.filesystem.move(temporary, target)

    def _discard(self, temporary: str) -> None:
        if self.filesystem.get_file_info(temporary).type != fs.FileType.NotFound:
            self.filesystem.delete_file(temporary)


def download(uri: str, directory: Path, credentials: Credentials | Mapping[str, str] | Path | None = None) -> Path:
    """Copy the file or folder at `uri` into a local directory and return its local path; see `Store.download`.

    Raises:
        NotFound: there is nothing at `uri`.
        StorageError: of another type, where the store cannot be asked.
    """
    store = Store.open(uri, credentials)
    if not store.exists():
        store.require_bucket()
        raise NotFound(uri, "there is nothing here", "check the URI")
    return store.download("", directory)
