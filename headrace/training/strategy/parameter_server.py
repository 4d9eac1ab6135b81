"""A worker of a parameter server: no process group, the servers are all that workers have in common."""

from __future__ import annotations

import logging
from typing import Any

from headrace.training.running import Run
from headrace.training.strategy.base import Loss

logger = logging.getLogger(__name__)


class ParameterServerStrategy:
    """One worker, which pulls before a step and pushes after it.

    Each worker takes its part of every global batch, in the order that is the same everywhere, at its own pace. In
    Synchronous the parts' gradients, weighed by their rows, make the step of the whole batch.
    """

    counts = True
    gathers = False

    def __init__(self, model: Any, run: Run, loss: Loss, learning_rate: float, fingerprint: str) -> None:
        self.part = (run.rank, run.world_size)
        self._model, self._loss = model, loss
        self._client = run.parameter_server(model, learning_rate, fingerprint)

    @property
    def steps(self) -> int:
        """Steps taken by this worker, or by those before it in its place."""
        return self._client.step

    def step(self, features: Any, labels: Any, rows: int) -> Any:
        self._client.pull()
        loss = self._loss(self._model(features), labels)
        mine = len(labels)
        if mine:
            (loss / mine).backward()
        self._client.push(rows=mine)
        return loss.detach()

    def may_save(self) -> bool:
        """The servers save."""
        return False

    def gather(self) -> None:
        """Nothing to do: the servers hold everything."""

    def objects(self) -> dict[str, Any]:
        return {}

    def restored(self) -> None:
        """Nothing to do: the servers came back by themselves."""

    def finish(self) -> Any:
        client = self._client
        client.finish()
        sent, taken = client.pushed, client.pulled
        logger.info(
            "finished: %.1f MB of gradients pushed in %.1f MB, %.1f MB of weights pulled in %.1f MB",
            *(value / 1e6 for value in (sent.plain, sent.wire, taken.plain, taken.wire)),
        )
        if self.part[0] == 0:
            logger.info("waiting for the other workers")
            client.wait_for_all()
        return self._model
