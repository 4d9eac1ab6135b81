"""Every row once per epoch, in an order that survives a restart with another number of workers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headrace.training.batches import Batches


def taken(workers: int, rows: int = 103, epochs: int = 2, start: dict[str, object] | None = None) -> list[list[int]]:
    """Rows of each global batch, put together from the workers' parts."""
    parts = [Batches(rows, 10, rank=rank, world_size=workers, seed=7, epochs=epochs) for rank in range(workers)]
    for part in parts:
        if start is not None:
            part.load_state_dict(start)
    return [np.concatenate(group).tolist() for group in zip(*parts, strict=True)]


@pytest.mark.parametrize("workers", [1, 3])
def test_each_epoch_has_every_row_once_in_another_order(workers: int) -> None:
    batches = taken(workers)
    first, second = (list(itertools.chain(*half)) for half in (batches[:11], batches[11:]))
    assert sorted(first) == sorted(second) == list(range(103))
    assert first != second


def test_a_run_goes_on_in_the_middle_of_an_epoch_with_other_workers() -> None:
    one = Batches(103, 10, seed=7, epochs=2)
    for _ in itertools.islice(one, 14):
        pass
    assert (one.epoch, one.batch, one.step, one.steps) == (1, 3, 14, 22)
    assert taken(4, start=one.state_dict()) == taken(1)[14:]


def test_what_reads_ahead_does_not_move_the_position() -> None:
    batches = Batches(103, 10, seed=7, epochs=1)
    reader = list(batches.ahead())  # a DataLoader that prefetches everything
    for number, (mine, prefetched) in enumerate(zip(batches, reader, strict=True), 1):
        assert mine.tolist() == prefetched.tolist()
        assert batches.step == number


def test_a_position_in_other_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'rows': 103.*'rows': 99"):
        Batches(99, 10).load_state_dict(Batches(103, 10).state_dict())
