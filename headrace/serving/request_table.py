"""Records of the request log as Parquet files, one a write: `date=<day>/<pod>-<milliseconds>.parquet`.

time          timestamp[us, UTC]
id            string     the client's name for the request
service, step, arm
status        int16      503 where no step could answer
milliseconds  double     that the chain took
inputs        string     JSON: {name: {"datatype", "shape", "data"}}; null where the request could not be read
outputs       string     likewise
error         string     what the client was told instead of outputs
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import parquet

from headrace.serving.protocol import decode_request
from headrace.serving.request_log import Record
from headrace.serving.tensors import DTYPES, RequestError, datatype_of, from_binary, to_json
from headrace.storage import Store

SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("id", pa.string()),
        ("service", pa.string()),
        ("step", pa.string()),
        ("arm", pa.string()),
        ("status", pa.int16()),
        ("milliseconds", pa.float64()),
        ("inputs", pa.string()),
        ("outputs", pa.string()),
        ("error", pa.string()),
    ]
)


class ParquetSink:
    """A folder of Parquet files.

    Args:
        service: Name of the service.
        store: Opens the folder; a Secret that is missing costs records and not the router.
        writer: Name of this process, part of its files' names.
    """

    def __init__(self, service: str, store: Callable[[], Store], writer: str) -> None:
        self._service = service
        self._store = store
        self._writer = writer

    def write(self, records: Sequence[Record]) -> None:
        """One file; see `Sink.write`."""
        buffer = io.BytesIO()
        rows = [row(self._service, record) for record in records]
        parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
        last = datetime.fromtimestamp(records[-1].at, UTC)
        name = f"{self._writer}-{int(records[-1].at * 1000)}.parquet"
        self._store().write_bytes(f"date={last:%Y-%m-%d}/{name}", buffer.getvalue())


def row(service: str, record: Record) -> dict[str, Any]:
    """A record as a row of the table."""
    found: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.at, UTC),
        "service": service,
        "step": record.step,
        "arm": record.arm,
        "status": record.reply.status if record.reply else 503,
        "milliseconds": record.seconds * 1000,
    }
    try:
        request = decode_request(record.query.body, record.query.json_length)
        found["id"] = request.id
        found["inputs"] = orjson.dumps(
            {
                name: {"datatype": datatype_of(array), "shape": array.shape, "data": to_json(array)}
                for name, array in request.inputs.items()
            }
        ).decode()
    except RequestError:
        # The client was told what is wrong with it, and that is kept.
        found["inputs"] = None
    if record.reply is None:
        found["error"] = "no step could answer"
    elif record.reply.status >= 400:
        found["error"] = _said(record.reply.body)
    else:
        found["outputs"] = _outputs(record.reply.body, record.reply.json_length)
    return found


def _said(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:1000].decode(errors="replace")


def _outputs(body: bytes, json_length: str | None) -> str | None:
    head = int(json_length) if json_length else len(body)
    try:
        tensors: list[Mapping[str, Any]] = orjson.loads(body[:head])["outputs"]
        at, found = head, {}
        for tensor in tensors:
            data = tensor.get("data")
            size = (tensor.get("parameters") or {}).get("binary_data_size")
            if size is not None and tensor["datatype"] in DTYPES:
                view = memoryview(body)[at : at + size]
                data = to_json(from_binary(tensor["name"], tensor["datatype"], list(tensor["shape"]), view))
                at += size
            found[tensor["name"]] = {"datatype": tensor["datatype"], "shape": tensor["shape"], "data": data}
    except (orjson.JSONDecodeError, KeyError, TypeError, RequestError):
        return None
    return orjson.dumps(found).decode()
