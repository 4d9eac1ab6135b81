"""How the numbers that a model is asked about differ from those that it was trained on.

A profile of the training rows (bounds between tenths of each column, and how many values are missing) lies in the
model's card. Serving counts its rows into the same tenths. The population stability index of a column is

    PSI = sum over bins of (served - trained) * ln(served / trained)

with the shares of both, none taken as less than `FLOOR`. By the usual rule less than 0.1 is no change, more than 0.25 a
large one (Siddiqi, Credit Risk Scorecards, 2006).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10
FLOOR = 1e-4
"""Least share of a bin, so that an empty one does not make the index infinite."""
MOST_COLUMNS = 512
"""Columns of a profile at most; a wider model has none."""
MOST_ROWS = 100_000
"""Rows that a profile is made of at most, evenly picked."""
ENOUGH = 200
"""Served rows below which the index says more of chance than of change."""
WINDOW = 20_000
"""Served rows that the figures are of: between half of this and this, once there are so many."""
ROWS_A_SECOND = 200.0
"""Rows that are counted; more would cost serving time and tell no more."""


def profile(columns: Sequence[str], rows: NDArray[Any]) -> list[dict[str, Any]] | None:
    """The profile of a table: name, edges (inner bounds of the bins), shares of the bins, share of missing values.

    Args:
        columns: Names.
        rows: Shape (rows, columns); NaN is a missing value.

    Returns:
        One entry per column; None where there are no rows, or too many columns.
    """
    if not len(rows) or not 0 < len(columns) <= MOST_COLUMNS:
        return None
    picked = rows[:: max(1, len(rows) // MOST_ROWS)].astype(np.float64)
    found = []
    for name, values in zip(columns, picked.T, strict=True):
        known = values[~np.isnan(values)]
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else np.empty(0)
        shares = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1) / max(len(known), 1)
        found.append(
            {
                "name": str(name),
                "edges": [float(f"{edge:.9g}") for edge in edges],
                "shares": [round(float(share), 6) for share in shares],
                "missing": round(1 - len(known) / len(values), 6),
            }
        )
    return found


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one column.

    Attributes:
        psi: Population stability index; None before there are rows enough.
        missing: Share of missing values.
    """

    name: str
    psi: float | None
    missing: float


class Drift:
    """Counts served rows. May be used from several threads; a row that would have to wait is not counted.

    Args:
        columns: The profile.
        clock: Seconds.

    Raises:
        ValueError: it is no profile.
    """

    def __init__(self, columns: Sequence[Mapping[str, Any]], clock: Callable[[], float] = time.monotonic) -> None:
        try:
            self.names = [str(column["name"]) for column in columns]
            edges = [np.asarray(column["edges"], dtype=np.float64) for column in columns]
            self._shares = [np.asarray(column["shares"], dtype=np.float64) for column in columns]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the profile in the model's card cannot be read: {error}") from error
        if any(len(share) != len(edge) + 1 for share, edge in zip(self._shares, edges, strict=True)):
            raise ValueError("the profile in the model's card has other shares than bins")
        self._edges = np.full((len(edges), max(map(len, edges), default=0)), np.inf)
        for row, edge in zip(self._edges, edges, strict=True):
            row[: len(edge)] = edge
        self._bins = self._edges.shape[1] + 1
        self._clock = clock
        self._next = clock()
        self._lock = threading.Lock()
        self._now, self._before = self._empty(), self._empty()
        self.rows = 0

    def _empty(self) -> NDArray[np.int64]:
        # The last bin of each column counts missing values.
        return np.zeros((len(self.names), self._bins + 1), dtype=np.int64)

    def observe(self, rows: NDArray[Any]) -> None:
        """Count rows, shape (rows, columns); of other shapes nothing is counted."""
        if rows.ndim != 2 or rows.shape[1] != len(self.names) or not len(rows) or rows.dtype.kind not in "fiu":
            return
        now = self._clock()
        if now < self._next or not self._lock.acquire(blocking=False):
            return
        try:
            taken = rows[: int(ROWS_A_SECOND)].astype(np.float64)
            self._next = max(self._next, now - 1) + len(taken) / ROWS_A_SECOND
            missing = np.isnan(taken)
            bins = np.where(missing, self._bins, (taken[:, :, None] > self._edges).sum(axis=2))
            flat = bins + np.arange(len(self.names)) * (self._bins + 1)
            self._now += np.bincount(flat.ravel(), minlength=self._now.size).reshape(self._now.shape)
            self.rows += len(taken)
            if self._now[0].sum() >= WINDOW // 2:
                self._before, self._now = self._now, self._empty()
        finally:
            self._lock.release()

    def figures(self) -> list[Figures]:
        """Of the last rows, one entry per column."""
        with self._lock:
            counts = self._now + self._before
        found = []
        for name, trained, served in zip(self.names, self._shares, counts, strict=True):
            total, known = int(served.sum()), served[: len(trained)]
            psi = _psi(trained, known / known.sum()) if known.sum() >= ENOUGH else None
            found.append(Figures(name, psi, float(served[-1]) / total if total else 0.0))
        return found


def _psi(trained: NDArray[np.float64], served: NDArray[np.float64]) -> float:
    trained, served = np.maximum(trained, FLOOR), np.maximum(served, FLOOR)
    return float(((served - trained) * np.log(served / trained)).sum())
