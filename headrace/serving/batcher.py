"""Dynamic batching: requests that come within a moment of each other run as one.

A request waits at most `max_latency` for company; when `max_rows` rows are together they run at once. Only requests
alike go together: the same inputs of the same datatypes and row shapes, and the same outputs. So one that the model
refuses for its shape has only its like for company. When a batch fails, its requests run one by one, and each gets the
answer or the error that is its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from headrace.serving.models.base import Model, ModelError
from headrace.serving.pool import ModelPool, Overloaded
from headrace.serving.tensors import Array

log = logging.getLogger(__name__)

_Kind = tuple[tuple[tuple[str, str, tuple[int, ...]], ...], tuple[str, ...]]


@dataclass(slots=True)
class _Asked:
    inputs: Mapping[str, Array]
    rows: int
    answer: asyncio.Future[list[Array]]


@dataclass(slots=True)
class _Gathering:
    asked: list[_Asked] = field(default_factory=list)
    rows: int = 0
    timer: asyncio.TimerHandle | None = None


class Batcher:
    """Gathers requests to one model. Lives on one event loop.

    Args:
        model: The model; the first dimension of its inputs and outputs must be open.
        pool: Where it runs.
        max_rows: Rows of a batch.
        max_latency: Seconds that a request waits for others.
        most_waiting: Requests that may wait or run; beyond them `Overloaded` is raised at once.
        observe: Told the rows of each batch.

    Raises:
        ModelError: the model takes a fixed number of rows.
    """

    def __init__(
        self,
        model: Model,
        pool: ModelPool,
        max_rows: int,
        max_latency: float,
        most_waiting: int,
        observe: Callable[[int], None] = lambda rows: None,
    ) -> None:
        for spec in (*model.inputs, *model.outputs):
            if not spec.shape or spec.shape[0] != -1:
                raise ModelError(
                    f"has the tensor {spec.name!r} of shape {list(spec.shape)}: batching needs a first dimension of "
                    "any size; export it so, or leave predictor.batching out"
                )
        self._model = model
        self._pool = pool
        self._max_rows = max_rows
        self._max_latency = max_latency
        self._most_waiting = most_waiting
        self._observe = observe
        self._gathering: dict[_Kind, _Gathering] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.in_flight = 0

    async def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """As `Model.run`, together with others.

        Raises:
            RequestError: the inputs are not what the model takes.
            Overloaded: too many wait.
        """
        if self.in_flight >= self._most_waiting:
            raise Overloaded
        rows = _rows(inputs)
        self.in_flight += 1
        try:
            if rows is None or rows >= self._max_rows:
                self._observe(rows or 1)
                return await self._alone(inputs, outputs)
            return await self._together(inputs, tuple(outputs), rows)
        finally:
            self.in_flight -= 1

    async def _together(self, inputs: Mapping[str, Array], outputs: tuple[str, ...], rows: int) -> list[Array]:
        loop = asyncio.get_running_loop()
        kind: _Kind = (
            tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(inputs.items())),
            outputs,
        )
        group = self._gathering.get(kind)
        if group is not None and group.rows + rows > self._max_rows:
            self._flush(kind)
            group = None
        if group is None:
            group = self._gathering[kind] = _Gathering()
            group.timer = loop.call_later(self._max_latency, self._flush, kind)
        asked = _Asked(inputs, rows, loop.create_future())
        group.asked.append(asked)
        group.rows += rows
        if group.rows >= self._max_rows:
            self._flush(kind)
        return await asked.answer

    def _flush(self, kind: _Kind) -> None:
        group = self._gathering.pop(kind)
        if group.timer is not None:
            group.timer.cancel()
        # Whoever has left meanwhile is not waited on.
        asked = [one for one in group.asked if not one.answer.done()]
        if not asked:
            return
        task = asyncio.get_running_loop().create_task(self._batch(asked, kind[1]))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _batch(self, asked: Sequence[_Asked], outputs: Sequence[str]) -> None:
        self._observe(sum(one.rows for one in asked))
        try:
            if len(asked) == 1:
                _settle(asked[0], await self._alone(asked[0].inputs, outputs))
                return
            names = asked[0].inputs

            def work() -> list[list[Array]]:
                whole = {name: np.concatenate([one.inputs[name] for one in asked]) for name in names}
                found = self._model.run(whole, outputs)
                ends = np.cumsum([one.rows for one in asked])[:-1]
                return [list(parts) for parts in zip(*(np.split(array, ends) for array in found), strict=True)]

            for one, parts in zip(asked, await self._pool.run(lambda stop: work()), strict=True):
                _settle(one, parts)
        except Exception as error:  # noqa: BLE001 - it goes to whoever waits
            if len(asked) == 1:
                _fail(asked[0], error)
                return
            log.info("a batch failed; its requests run one by one", extra={"fields": {"requests": len(asked)}})
            await asyncio.gather(*(self._batch([one], outputs) for one in asked))

    async def _alone(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        return await self._pool.run(lambda stop: self._model.run(inputs, outputs, stop))


def _rows(inputs: Mapping[str, Array]) -> int | None:
    """Rows of a request whose inputs agree about them; None where they do not, or have none."""
    sizes = {array.shape[0] if array.ndim else None for array in inputs.values()}
    return sizes.pop() if len(sizes) == 1 else None


def _settle(one: _Asked, parts: list[Array]) -> None:
    if not one.answer.done():
        one.answer.set_result(parts)


def _fail(one: _Asked, error: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(error)
