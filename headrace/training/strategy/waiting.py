"""Pipelines over gloo, whose messages are waited for one by one.

PyTorch before 2.7 hands a batch of messages over and waits for the last of them only. NCCL makes one piece of work of
a batch, so that is all of them; under gloo the others may still be on their way, and a pipeline that sends and receives
at once stops for ever. Newer releases wait for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class _All:
    """Several pieces of work as one."""

    def __init__(self, works: Sequence[Any]) -> None:
        self._works = works

    def wait(self) -> None:
        for work in self._works:
            work.wait()


@contextmanager
def for_every_message() -> Iterator[None]:
    """While it lasts, pipeline schedules of this process wait for every message of a batch."""
    import torch.distributed as dist
    from torch.distributed.pipelining import schedules

    if hasattr(schedules, "_wait_batch_p2p"):
        yield
        return

    def batch(operations: list[Any], desc: str | None = None) -> Any:
        return _All(dist.batch_isend_irecv(operations)) if operations else None

    original = schedules._batch_p2p
    schedules._batch_p2p = batch
    try:
        yield
    finally:
        schedules._batch_p2p = original
