"""Parquet data that need not fit into memory, in batches: each worker reads its row groups ahead of training.

    data = run.dataset("s3://data/clicks", batch_size=4096, epochs=3)
    parts = {"model": model, "data": data}
    run.checkpoints.restore(parts)
    for batch in run.data(data):  # column name -> numpy array
        train_one(model, batch)
        if run.checkpoints.due():
            run.checkpoints.save(data.step, parts)

An epoch puts the row groups into an order, and the rows of each row group; both depend on the seed and the epoch alone.
The rows in that order are cut into one piece per worker, and every piece into the same number of batches, so that all
workers take the same steps, each row is read once in an epoch, and no worker waits for another at its end. Memory holds
the row groups that are read ahead, whatever the size of the data. Rows are shuffled within their row group: data whose
rows are sorted should be written in random order, or in many small row groups.

A position is the same on all workers. A run that goes on with the same number of workers gets exactly the batches that
it would have got; with another number, exactly the rows of the epoch that nobody had.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.training.parquet import ParquetRows

Batch = dict[str, NDArray[Any]]
Interval = tuple[int, int]
READERS = 2
"""Threads that read and decode."""


class Stream:
    """The batches of one worker.

    Args:
        rows: The data.
        batch_size: Rows of one step over all workers together; a batch has at most this divided by the workers,
            rounded up.
        columns: What to read; None for all columns.
        rank: This worker.
        world_size: Workers.
        seed: Of the order.
        epochs: Passes over the rows; None goes on for ever.
        shuffle: Whether the order is random; otherwise it is that of the rows.
        prefetch: Row groups that are read ahead.

    Attributes:
        epoch: Epochs finished.
        step: Batches taken in all.

    Raises:
        ValueError: a batch would have no rows, or nothing could be read ahead.
    """

    def __init__(
        self,
        rows: ParquetRows,
        batch_size: int,
        columns: Sequence[str] | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        epochs: int | None = None,
        shuffle: bool = True,
        prefetch: int = 4,
    ) -> None:
        if batch_size < world_size or prefetch < 1:
            raise ValueError(
                f"batches of {batch_size} rows for {world_size} workers, {prefetch} row groups ahead: "
                "each worker needs a row, and at least one row group is read ahead"
            )
        self._rows, self._batch_size, self._epochs = rows, batch_size, epochs
        self._columns = list(rows.schema.names) if columns is None else list(columns)
        self._rank, self._world_size = rank, world_size
        self._seed, self._shuffle, self._prefetch = seed, shuffle, prefetch
        self.epoch = self.step = 0
        self._left: list[Interval] = [(0, len(rows))]
        self._taken = 0

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the present position on. A batch counts as taken when it is handed out."""
        while self._epochs is None or self.epoch < self._epochs:
            yield from self._rest_of_epoch()

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "left": [list(interval) for interval in self._left],
            "taken": self._taken,
            "workers": self._world_size,
            **self._what(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a saved position.

        Raises:
            ValueError: it is one in other data or another order.
        """
        other = {name: state_dict.get(name) for name in self._what()}
        if other != self._what():
            raise ValueError(f"the position was saved in {other}, this run has {self._what()}")
        self.epoch, self.step = int(state_dict["epoch"]), int(state_dict["step"])
        left = [(int(start), int(stop)) for start, stop in state_dict["left"]]
        taken, workers = int(state_dict["taken"]), int(state_dict["workers"])
        if workers == self._world_size:
            self._left, self._taken = left, taken
        else:
            batches = _batches(left, self._batch_size)
            parts = [_part(left, rank, workers) for rank in range(workers)]
            self._left = [each for part in parts for each in _cut(part, _begin(part, taken, batches), None)]
            self._taken = 0

    def _what(self) -> dict[str, Any]:
        return {
            "data": self._rows.digest(),
            "batchSize": self._batch_size,
            "seed": self._seed,
            "shuffle": self._shuffle,
        }

    def _rest_of_epoch(self) -> Iterator[Batch]:
        part = _part(self._left, self._rank, self._world_size)
        batches = _batches(self._left, self._batch_size)
        places = [_begin(part, number, batches) for number in range(self._taken, batches + 1)]
        pieces = self._pieces(_cut(part, places[0], None)) if places else iter(())
        buffered = _Buffer(self._read_ahead(pieces), self._empty)
        try:
            for start, stop in itertools.pairwise(places):
                batch = buffered.take(stop - start)
                self._taken += 1
                self.step += 1
                if self._taken == batches:
                    self._next_epoch()
                yield batch
        finally:
            buffered.close()
        if not batches:
            self._next_epoch()

    def _next_epoch(self) -> None:
        self.epoch += 1
        self._left, self._taken = [(0, len(self._rows))], 0

    def _pieces(self, intervals: Sequence[Interval]) -> Iterator[tuple[int, int, int]]:
        """Row group, first row and end in it, in the epoch's order."""
        groups = np.arange(len(self._rows.groups))
        if self._shuffle:
            groups = np.random.default_rng([self._seed, self.epoch]).permutation(groups)
        starts = [0, *itertools.accumulate(self._rows.groups[group].rows for group in groups)]
        for start, stop in intervals:
            for place in range(bisect.bisect_right(starts, start) - 1, len(groups)):
                if starts[place] >= stop:
                    break
                first = max(start, starts[place]) - starts[place]
                yield int(groups[place]), first, min(stop, starts[place + 1]) - starts[place]

    def _read_ahead(self, pieces: Iterator[tuple[int, int, int]]) -> Iterator[Batch]:
        epoch = self.epoch
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(READERS, thread_name_prefix="headrace-data") as pool:
            try:
                for piece in pieces:
                    waiting.append(pool.submit(self._read, epoch, *piece))
                    if len(waiting) == self._prefetch:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, epoch: int, group: int, start: int, stop: int) -> Batch:
        table = self._rows.read_group(group, self._columns)
        columns = {name: _array(table.column(name)) for name in self._columns}
        if not self._shuffle:
            return {name: column[start:stop] for name, column in columns.items()}
        order = np.random.default_rng([self._seed, epoch, group]).permutation(table.num_rows)[start:stop]
        return {name: column[order] for name, column in columns.items()}

    def _empty(self) -> Batch:
        table = self._rows.schema.empty_table()
        return {name: _array(table.column(name)) for name in self._columns}


class _Buffer:
    """Pieces of any length on one side, batches of wanted lengths on the other."""

    def __init__(self, pieces: Iterator[Batch], empty: Any) -> None:
        self._pieces, self._empty = pieces, empty
        self._piece: Batch = {}
        self._at = self._length = 0

    def take(self, count: int) -> Batch:
        found: list[Batch] = []
        while count > 0:
            if self._at == self._length:
                self._piece = next(self._pieces)
                self._at, self._length = 0, len(next(iter(self._piece.values())))
            stop = min(self._at + count, self._length)
            found.append({name: column[self._at : stop] for name, column in self._piece.items()})
            count -= stop - self._at
            self._at = stop
        if not found:
            empty: Batch = self._empty()
            return empty
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def close(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


def _array(column: Any) -> NDArray[Any]:
    """A column as numpy has it; vectors of one length become rows of a matrix."""
    from pyarrow import types

    if types.is_fixed_size_list(column.type):
        values: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(-1, column.type.list_size)
    array: NDArray[Any] = column.to_numpy()
    return array


def _length(intervals: Sequence[Interval]) -> int:
    return sum(stop - start for start, stop in intervals)


def _batches(intervals: Sequence[Interval], batch_size: int) -> int:
    """Steps in which the rows are taken by all workers together."""
    return math.ceil(_length(intervals) / batch_size)


def _part(intervals: Sequence[Interval], rank: int, world_size: int) -> list[Interval]:
    """A worker's rows: the intervals one after another, cut into pieces that differ by at most one row."""
    rows = _length(intervals)
    return _cut(intervals, rows * rank // world_size, rows * (rank + 1) // world_size)


def _begin(part: Sequence[Interval], batch: int, batches: int) -> int:
    """Where a worker's batch begins in its part."""
    return _length(part) * batch // batches if batches else 0


def _cut(intervals: Sequence[Interval], start: int, stop: int | None) -> list[Interval]:
    """What lies between two places, counted along the intervals."""
    found: list[Interval] = []
    at = 0
    for first, last in intervals:
        low = max(first, first + start - at)
        high = last if stop is None else min(last, first + stop - at)
        if low < high:
            found.append((low, high))
        at += last - first
    return found
