"""The rows of a data set in global batches: shuffled anew each epoch, split over workers, and resumable at any batch.

    batches = Batches(len(data), 256, rank=run.rank, world_size=run.world_size, epochs=10)
    parts = {"model": model, "optimizer": optimizer, "batches": batches}
    run.checkpoints.restore(parts)
    for rows in batches:
        train_one(data[rows])
        if run.checkpoints.due():
            run.checkpoints.save(batches.step, parts)

A DataLoader reads ahead of training, so its own position is not that of training. It gets a copy that runs ahead:

    loader = DataLoader(data, batch_sampler=batches.ahead(), num_workers=2)
    for _, batch in zip(batches, loader):
        ...

The order depends on seed and epoch alone, so a run goes on in the middle of an epoch with another number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.training.data import epoch_order, shard


class Batches:
    """Row numbers of this worker's part of each global batch.

    Args:
        rows: Rows of the data set.
        batch_size: Rows of one step over all workers together.
        rank: This worker.
        world_size: Workers.
        seed: Of the order.
        epochs: Passes over the rows; None goes on for ever.
        shuffle: Whether the order changes from epoch to epoch; otherwise it is that of the rows.

    Attributes:
        epoch: Epochs finished.
        batch: Batches taken in the epoch after them.

    Raises:
        ValueError: there are no rows, or a batch has none.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        epochs: int | None = None,
        shuffle: bool = True,
    ) -> None:
        if rows < 1 or batch_size < 1:
            raise ValueError(f"{rows} rows in batches of {batch_size}: both must be at least 1")
        self._rows, self._batch_size, self._seed, self._shuffle = rows, batch_size, seed, shuffle
        self._rank, self._world_size, self._epochs = rank, world_size, epochs
        self.epoch = self.batch = 0

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return math.ceil(self._rows / self._batch_size)

    @property
    def step(self) -> int:
        """Batches taken in all."""
        return self.epoch * self.per_epoch + self.batch

    @property
    def steps(self) -> int | None:
        """Batches of the whole run; None where it has no end."""
        return None if self._epochs is None else self._epochs * self.per_epoch

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """Batches from the present position on. A batch counts as taken when it is handed out."""
        order, ordered = np.arange(self._rows), -1
        while self._epochs is None or self.epoch < self._epochs:
            if self._shuffle and self.epoch != ordered:
                order, ordered = epoch_order(self._rows, self._seed, self.epoch), self.epoch
            rows = order[self.batch * self._batch_size : (self.batch + 1) * self._batch_size]
            self.batch += 1
            if self.batch == self.per_epoch:
                self.epoch, self.batch = self.epoch + 1, 0
            yield shard(rows, self._rank, self._world_size)

    def ahead(self) -> Batches:
        """A copy at the same position that moves by itself."""
        copy = Batches(
            self._rows,
            self._batch_size,
            rank=self._rank,
            world_size=self._world_size,
            seed=self._seed,
            epochs=self._epochs,
            shuffle=self._shuffle,
        )
        copy.epoch, copy.batch = self.epoch, self.batch
        return copy

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"epoch": self.epoch, "batch": self.batch, **self._what()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a saved position.

        Raises:
            ValueError: it is one in other data or another order.
        """
        other = {name: state_dict.get(name) for name in self._what()}
        if other != self._what():
            raise ValueError(f"the position was saved in {other}, this run has {self._what()}")
        self.epoch, self.batch = int(state_dict["epoch"]), int(state_dict["batch"])

    def _what(self) -> dict[str, Any]:
        return {"rows": self._rows, "batchSize": self._batch_size, "seed": self._seed, "shuffle": self._shuffle}
