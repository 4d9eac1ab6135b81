"""Rows per second that one worker gets from run.dataset, beside pyarrow's own batches. Run inside the trainer image."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from benchmarks.parameter_server.machine import machine
from headrace.training.parquet import ParquetRows
from headrace.training.stream import Stream

ROWS, COLUMNS, GROUP, BATCH, TIMES = 3_000_000, 16, 100_000, 4096, 5


def bare(path: Path) -> Iterator[dict[str, Any]]:
    """pyarrow's batches as numpy arrays."""
    for batch in parquet.ParquetFile(path).iter_batches(BATCH):
        yield {name: batch.column(name).to_numpy() for name in batch.schema.names}


def stream(path: Path, shuffle: bool) -> Iterator[dict[str, Any]]:
    """The trainer's batches."""
    return iter(Stream(ParquetRows.open(f"file://{path}"), BATCH, epochs=1, shuffle=shuffle))


def rate(batches: Iterator[dict[str, Any]]) -> float:
    """Rows per second."""
    began, rows = time.monotonic(), 0
    for batch in batches:
        rows += len(batch["x0"])
    assert rows == ROWS
    return rows / (time.monotonic() - began)


def main() -> None:
    """Print the line."""
    found = machine() | {"benchmark": "classic reader", "rows": ROWS, "columns": COLUMNS, "batch": BATCH}
    with tempfile.TemporaryDirectory(dir="/data") as name:
        path = Path(name) / "rows.parquet"
        random = np.random.default_rng(0)
        columns = {f"x{index}": random.standard_normal(ROWS, np.float32) for index in range(COLUMNS)}
        parquet.write_table(pyarrow.table(columns), path, row_group_size=GROUP)
        ways: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
            "pyarrow": lambda: bare(path),
            "stream": lambda: stream(path, shuffle=False),
            "streamShuffled": lambda: stream(path, shuffle=True),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(TIMES):
            for way, make in ways.items():
                rates[way].append(rate(make()))
        found |= {f"{way}RowsPerSecond": int(statistics.median(values)) for way, values in rates.items()}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
