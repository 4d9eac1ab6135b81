"""From a URI to an open filesystem and the path in it. Timeouts let a dead store be known within a minute."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from headrace.storage.credentials import Credentials
from headrace.storage.errors import InvalidLocation, Unreachable

CONNECT_TIMEOUT = 5.0
"""Seconds for a connection to be accepted."""
STALL_TIMEOUT = 10.0
"""Seconds without a byte until a request is given up."""
ATTEMPTS = 3
"""Tries of one request, with the SDK's exponential backoff between them."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a URI leads.

    Attributes:
        scheme: s3, hdfs or file.
        filesystem: The `pyarrow.fs.FileSystem`.
        path: The path inside it; for S3 it begins with the bucket.
        server: Who is asked, for messages; empty for local files.
    """

    scheme: str
    filesystem: Any
    path: str
    server: str


def locate(uri: str, credentials: Credentials) -> Location:
    """The filesystem and path of `uri`. Opens no connection for s3 and file.

    Raises:
        InvalidLocation: the URI or the credentials cannot be used.
        Unreachable: the HDFS name node does not answer.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"}:
            raise InvalidLocation(uri, f"names the host {parts.netloc!r}", "write file:///path with three slashes")
        return Location("file", fs.LocalFileSystem(), unquote(parts.path).rstrip("/") or "/", "")
    if parts.scheme == "s3":
        path = uri.removeprefix("s3://").strip("/")
        if not path or not parts.netloc:
            raise InvalidLocation(uri, "names no bucket", "write s3://bucket/path")
        filesystem, server = _s3(uri, credentials)
        return Location("s3", filesystem, path, server)
    if parts.scheme == "hdfs":
        return Location(
            "hdfs", _hdfs(uri, parts.hostname or "default", parts.port), parts.path.rstrip("/"), parts.netloc
        )
    raise InvalidLocation(uri, f"has the scheme {parts.scheme!r}", "use s3://, hdfs:// or file://")


def _s3(uri: str, credentials: Credentials) -> tuple[Any, str]:
    options: dict[str, Any] = {}
    server = "AWS"
    if credentials.endpoint_url:
        endpoint = urlsplit(credentials.endpoint_url)
        if endpoint.scheme not in {"http", "https"} or not endpoint.netloc:
            raise InvalidLocation(
                uri, f"AWS_ENDPOINT_URL is {credentials.endpoint_url!r}", "write http://host:port or https://host:port"
            )
        server = credentials.endpoint_url
        options |= {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc + endpoint.path.rstrip("/")}
    if bool(credentials.access_key_id) != bool(credentials.secret_access_key):
        missing = "AWS_SECRET_ACCESS_KEY" if credentials.access_key_id else "AWS_ACCESS_KEY_ID"
        raise InvalidLocation(uri, f"{missing} is empty and its other half is set", "set both or neither")
    if credentials.access_key_id:
        options |= {
            "access_key": credentials.access_key_id,
            "secret_key": credentials.secret_access_key,
            "session_token": credentials.session_token or None,
        }
    elif credentials.endpoint_url:
        # The SDK would look for an instance profile for many seconds, which no store but AWS takes.
        raise InvalidLocation(uri, f"no credentials for {server}", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if credentials.ca_bundle:
        options["tls_ca_file_path"] = credentials.ca_bundle
    filesystem = fs.S3FileSystem(
        region=credentials.region or "us-east-1",
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=STALL_TIMEOUT,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # One PUT for a small object instead of a multipart upload's three requests.
        allow_delayed_open=True,
        **options,
    )
    return filesystem, server


def _hdfs(uri: str, host: str, port: int | None) -> Any:
    try:
        return fs.HadoopFileSystem(host, port or 8020, user=os.environ.get("HADOOP_USER_NAME") or None)
    except OSError as error:
        text = " ".join(str(error).split())
        if "libhdfs" in text or "libjvm" in text or "JVM" in text:
            raise InvalidLocation(
                uri,
                f"this image has no HDFS client ({text})",
                "use an image with Hadoop's client and Java, and set HADOOP_HOME, JAVA_HOME and CLASSPATH",
            ) from error
        raise Unreachable(uri, f"the name node does not answer: {text}", "check host and port of the URI") from error
