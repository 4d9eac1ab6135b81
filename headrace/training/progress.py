"""From what a script says about itself to the `Progress` of the API: percentages, significant digits, throughput."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from headrace.api.trainingjob import Progress

WINDOW = 10.0
"""Seconds over which the throughput is averaged."""
RESOLUTION = 0.1
"""Seconds between two marks of the throughput: bounds what is kept, however quick the steps are."""


def significant(value: float, digits: int) -> str:
    """`value` as text rounded to `digits` significant digits, without an exponent from 1e-4 to 1e15.

    >>> significant(12345.6, 3), significant(0.123456, 4)
    ('12300', '0.1235')
    """
    if value == 0 or not math.isfinite(value):
        return format(value, "g")
    rounded = float(f"{value:.{digits - 1}e}")
    if 1e-4 <= abs(rounded) < 1e15:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
        return f"{rounded:.{decimals}f}"
    return f"{rounded:.{digits - 1}e}"


class Throughput:
    """Samples per second over the last WINDOW seconds.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, float]] = deque([(clock(), 0.0)])

    def add(self, samples: float) -> None:
        """`samples` more were processed up to now."""
        now = self._clock()
        total = self._marks[-1][1] + samples
        if len(self._marks) > 1 and now - self._marks[-2][0] < RESOLUTION:
            self._marks.pop()
        self._marks.append((now, total))
        while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW:
            self._marks.popleft()

    def rate(self) -> float:
        """Samples per second; 0 before anything was added."""
        (first, before), (last, after) = self._marks[0], self._marks[-1]
        return (after - before) / (last - first) if last > first else 0.0


class Report:
    """The report of one run: what was said last about each figure.

    Args:
        attempt: Number of the attempt.
        backend: Collective library.

    Attributes:
        figures: Epochs and steps, finished and in all.
        metrics: Final metrics by name.
        resumed_from_step: Step of the checkpoint that was restored.
        registered: What the registry said.
    """

    def __init__(self, attempt: int, backend: str) -> None:
        self._attempt = attempt
        self._backend = backend
        self.figures: dict[str, int] = {"epoch": 0, "epochs": 0, "step": 0, "steps": 0}
        self._loss: Any = None
        self.metrics: dict[str, float] = {}
        self._model_uri = ""
        self.registered: dict[str, Any] = {}
        self._throughput = Throughput()
        self.resumed_from_step: int | None = None

    def restart_clock(self) -> None:
        """Training begins now: what was done before (reading data, a checkpoint) is no part of the throughput."""
        self._throughput = Throughput()

    def update(
        self,
        figures: Mapping[str, int | None],
        loss: Any = None,
        samples: float = 0.0,
        metrics: Mapping[str, float] | None = None,
        model_uri: str | None = None,
    ) -> None:
        """Take new values; None keeps the old one. The loss may be a tensor: its number is read by `content`."""
        self.figures |= {name: int(value) for name, value in figures.items() if value is not None}
        if loss is not None:
            self._loss = loss.detach() if hasattr(loss, "detach") else loss
        if samples:
            self._throughput.add(samples)
        self.metrics |= {name: float(value) for name, value in (metrics or {}).items()}
        self._model_uri = model_uri or self._model_uri

    @property
    def loss(self) -> float | None:
        """The loss that was said last; reading it waits for a GPU."""
        return None if self._loss is None else float(self._loss)

    @property
    def rate(self) -> float:
        """Samples per second, over all workers."""
        return self._throughput.rate()

    def content(self) -> dict[str, Any]:
        """The report as `docs/architecture.md` describes it."""
        rate, loss = self.rate, self.loss
        progress = Progress(
            **self.figures,
            percent=self._percent(),
            loss="" if loss is None else significant(loss, 4),
            throughput=significant(rate, 3) if rate else "",
            backend=self._backend,
            resumed_from_step=self.resumed_from_step,
        )
        extra: dict[str, Any] = {"attempt": self._attempt}
        if self.metrics:
            extra["metrics"] = {name: significant(value, 6) for name, value in self.metrics.items()}
        if self._model_uri:
            extra["modelUri"] = self._model_uri
        if self.registered:
            extra["registered"] = dict(self.registered)
        return progress.manifest() | extra

    def _percent(self) -> int:
        for done, whole in (("step", "steps"), ("epoch", "epochs")):
            if self.figures[whole]:
                return min(100, 100 * self.figures[done] // self.figures[whole])
        return 0
