"""The one door to storage: a URI (`s3://`, `hdfs://`, `file://`) is a `Store` with a few atomic operations."""

from headrace.storage.credentials import Credentials
from headrace.storage.errors import AccessDenied, InvalidLocation, NotFound, StorageError, StorageFull, Unreachable
from headrace.storage.patience import patiently
from headrace.storage.store import Entry, Store, download

__all__ = [
    "AccessDenied",
    "Credentials",
    "Entry",
    "InvalidLocation",
    "NotFound",
    "StorageError",
    "StorageFull",
    "Store",
    "Unreachable",
    "download",
    "patiently",
]
