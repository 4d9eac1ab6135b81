"""What can go wrong at the door, by what the reader can do about it.

Filesystem libraries raise OSError with the reason in the text. `translate` turns that into one of four types, each of
which names the URI, what was found there and the remedy.
"""

from __future__ import annotations

import errno
import re


class StorageError(Exception):
    """A storage operation failed.

    Attributes:
        uri: What was asked for.
        found: What happened instead.
        remedy: What to do about it; may be empty.
        retryable: Whether the same operation may succeed later without anybody changing anything.
    """

    retryable = False

    def __init__(self, uri: str, found: str, remedy: str = "") -> None:
        self.uri = uri
        self.found = found
        self.remedy = remedy
        super().__init__(f"{uri}: {found}" + (f"; {remedy}" if remedy else ""))


class InvalidLocation(StorageError):
    """The URI or the credentials given with it cannot be used at all."""


class NotFound(StorageError):
    """There is no such object, folder or bucket."""


class AccessDenied(StorageError):
    """The store knows who asks and refuses, or does not know who asks."""


class Unreachable(StorageError):
    """The store did not answer, or answered that it cannot work now."""

    retryable = True


class StorageFull(StorageError):
    """There is no room: the disk is full, or a quota is used up. Room may be made while others wait."""

    retryable = True


_SUMMARY = re.compile(r"AWS Error (?P<code>[A-Z0-9_ ]+?)(?: \(HTTP status \d+\))? during (?P<operation>\w+)")
_UNPARSED = re.compile(r"Unable to parse ExceptionName: (?P<name>\w+) Message: (?P<message>[^(]*)")
_DENIED = {
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_SIGNATURE",
    "UNRECOGNIZED_CLIENT",
    "EXPIRED_TOKEN",
    "INVALID_CLIENT_TOKEN_ID",
    "MISSING_AUTHENTICATION_TOKEN",
    # Names that the SDK does not know.
    "XAdminUserNotFound",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
}
_FULL = {
    "QuotaExceeded",
    "QuotaExceededException",
    "InsufficientStorage",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "StorageFull",
    "InsufficientCapacity",
}
_FULL_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXT = re.compile(
    "HTTP status 507|No space left on device|Disk quota exceeded|DSQuotaExceeded|quota exceeded", re.IGNORECASE
)
"""HTTP 507 (WebDAV, RFC 4918); the C library's words for ENOSPC and EDQUOT; HDFS's exception; S3 gateways' words."""
_UNREACHABLE_ERRNO = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EIO,
}


def missing_bucket(uri: str, store: str = "") -> NotFound:
    """The error of a bucket that is not there; `store` says which server was asked."""
    where = f" at {store}" if store else ""
    return NotFound(uri, f"the bucket does not exist{where}", "create the bucket or correct the URI")


def translate(error: OSError, uri: str, store: str = "") -> StorageError:
    """The typed error of what a filesystem raised for `uri`; `store` says which server was asked.

    A local failure that no other type fits is an Unreachable: the store cannot work now.
    """
    text = " ".join(str(error).split())
    where = f" at {store}" if store else ""
    match = _SUMMARY.search(text)
    unparsed = _UNPARSED.search(text)
    code = unparsed["name"] if unparsed else match["code"] if match else ""
    if code == "NO_SUCH_BUCKET" or "The specified bucket does not exist" in text or "does not exist or access" in text:
        return missing_bucket(uri, store)
    if code in _FULL or error.errno in _FULL_ERRNO or _FULL_TEXT.search(text):
        return StorageFull(
            uri,
            f"there is no room left{where or ' on the disk'}: {text if len(text) < 300 else text[:300]}",
            "delete what is no longer needed, or raise the quota",
        )
    if code in _DENIED or (match and "HTTP status 403" in text):
        return AccessDenied(
            uri,
            f"the store{where} refused {match['operation'] if match else 'the request'} ({code or 'HTTP 403'})",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what that key may do in this bucket",
        )
    if isinstance(error, FileNotFoundError) or code in {"NO_SUCH_KEY", "RESOURCE_NOT_FOUND"}:
        return NotFound(uri, f"not found{where}", "check the path")
    if isinstance(error, PermissionError):
        return AccessDenied(uri, f"permission denied: {text}", "check the owner and mode of the file and its folders")
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return NotFound(uri, text, "a file stands where a folder is expected, or the other way round")
    if code == "NETWORK_CONNECTION":
        detail = text.split("Details: ", 1)[-1]
        return Unreachable(uri, f"no answer{where}: {detail}", "check AWS_ENDPOINT_URL and that the store is running")
    if unparsed:
        return Unreachable(uri, f"the store{where} answered {unparsed['name']}: {unparsed['message'].strip()}")
    if match:
        return Unreachable(uri, f"the store{where} failed in {match['operation']}: {text[match.start() :]}")
    if error.errno in _UNREACHABLE_ERRNO:
        return Unreachable(uri, f"no answer{where}: {text}")
    return Unreachable(uri, f"{type(error).__name__}: {text}")
