"""What is kept of requests and answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headrace.api.meta import LocalReference
from headrace.api.schema import Model, PositiveDuration, StorageURI


class RequestLog(Model):
    """A sample of requests and answers as Parquet files. Nothing waits for it: what finds no room is dropped and
    counted."""

    storage_uri: StorageURI | None = None
    """Folder; by default requests/ in the service's folder of the installation's storage. Files are
    date=<day>/<pod>-<number>.parquet."""
    secret_ref: LocalReference | None = None
    """Secret with storage credentials; by default the installation's."""
    percent: Annotated[int, Field(ge=1, le=100)] = 10
    """Percent of the requests that are kept, chosen by chance."""
    interval: PositiveDuration = "1m"
    """Time after which what was gathered is written; sooner when it is 8 MiB."""
