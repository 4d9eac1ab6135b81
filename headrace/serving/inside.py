"""The primary inside the router: no pods of its own, no hop."""

from __future__ import annotations

import asyncio

from headrace.serving.chain import Guarded
from headrace.serving.steps import LocalStep


class InsideUpstream:
    """What `RemoteUpstream` is for replicas, for a model in this process.

    Args:
        step: The model.
        guarded: It behind its timeout, its limit and its breaker.
    """

    def __init__(self, step: LocalStep, guarded: Guarded) -> None:
        self._step = step
        self.guarded = guarded

    @property
    def ready(self) -> int:
        """1 once the model is loaded."""
        return 0 if self._step.unavailable else 1

    async def run(self) -> None:
        """Nothing to keep: the router itself has the model loaded."""
        await asyncio.Event().wait()

    async def probe(self) -> bool:
        """Whether it is loaded."""
        return self.ready == 1

    def close(self) -> None:
        """Nothing to give back."""
