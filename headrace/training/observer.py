"""All that is measured of one worker, bundled for the session: step times, goodput, Prometheus, TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from headrace.mlflow import Point
from headrace.storage import Store
from headrace.training import goodput
from headrace.training.checkpoint import Checkpoints
from headrace.training.environment import Environment
from headrace.training.event_log import EventLog
from headrace.training.goodput import Goodput, Keeper
from headrace.training.progress import Report, significant
from headrace.training.step_clock import StepClock
from headrace.training.telemetry import GPU, Exporter, Snapshot, learning_rate, step_parts

POINT_EVERY = 2.0
"""Least seconds between two points of a curve."""
LONGEST_CURVE = 1000
"""Points of a curve that are kept for the registry; of more every second one is left out."""


class Observer:
    """What is known of a worker. Worker 0 also keeps the account of the run's time, and its curves.

    Attributes:
        clock: Where the time of steps goes.
        goodput: Where the time of the run goes.

    Args:
        environment: This worker.
        device: Its `torch.device`.
        storage: Folder of the run, if there is one.
        report: What the script said about itself.
        checkpoints: The checkpoints of the session; asked for when something is to be known.
    """

    def __init__(
        self,
        environment: Environment,
        device: Any,
        storage: Store | None,
        report: Report,
        checkpoints: Callable[[], Checkpoints],
    ) -> None:
        self.clock = StepClock()
        self.goodput = Goodput(environment.run_id)
        self._environment = environment
        self._report = report
        self._checkpoints = checkpoints
        self._gpu = GPU(device)
        self._keeper: Keeper | None = None
        self._events: EventLog | None = None
        self._exporter: Exporter | None = None
        self._next_point = 0.0
        self._rows: list[tuple[int, float, dict[str, float]]] = []
        if environment.metrics_port:
            labels = {"job": environment.job, "rank": str(environment.rank)}
            exporter = Exporter(self.snapshot, labels)
            if exporter.serve(environment.metrics_port + environment.local_rank):
                self._exporter = exporter
        if storage is not None and environment.rank == 0 and environment.job:
            self._keeper = Keeper(self.goodput, storage, goodput.WRITE_EVERY)
            self._keeper.start()
            self._events = EventLog(storage.folder(f"tensorboard/attempt-{environment.attempt}"))

    @property
    def curve(self) -> list[Point]:
        """Loss, learning rate and throughput as they went, at most LONGEST_CURVE points of each; of worker 0."""
        return [
            Point(name, value, step, at)
            for step, at, known in self._rows
            for name, value in known.items()
            if name.startswith("train/") and math.isfinite(value)
        ]

    def begin(self, useful: float | None) -> None:
        """Training begins, from a checkpoint that holds `useful` seconds of steps."""
        self.goodput.begin(useful)
        self.clock.begin()

    def step(self, number: int) -> None:
        """Step `number` is finished."""
        paused = self._checkpoints().saved.paused
        if self.clock.step(number, paused) and self._environment.rank == 0:
            self.goodput.step(paused)

    def content(self) -> dict[str, Any]:
        """What the report says besides what the script does."""
        found: dict[str, Any] = {}
        figures, split = self._report.figures, self.clock.split()
        if (rate := learning_rate(self._checkpoints().objects)) is not None:
            found["learningRate"] = significant(rate, 4)
        if split is not None:
            found["stepTime"] = {
                name: significant(value, 3) if value else "0" for name, value in split._asdict().items()
            }
            if figures["steps"]:
                found["estimatedRemainingSeconds"] = self._remaining(split.total)
        found["goodput"] = self.goodput.content()
        saved = self._checkpoints().saved
        checkpoint: dict[str, Any] = {}
        if saved.step is not None:
            checkpoint = {
                "step": saved.step,
                "bytes": saved.size,
                "seconds": significant(saved.seconds, 3),
                "pauseSeconds": significant(saved.pause, 3),
            }
        if saved.problem is not None:
            checkpoint["problem"] = dict(zip(("reason", "message"), saved.problem, strict=True))
        if saved.passed_over:
            checkpoint["passedOver"] = saved.passed_over[:1000]
        if checkpoint:
            found["checkpoint"] = checkpoint
        self._log(found)
        return found

    def snapshot(self) -> Snapshot:
        """What a scrape shows."""
        figures, split = self._report.figures, self.clock.split()
        saved = self._checkpoints().saved
        now: dict[str, float | None] = {
            "step": figures["step"],
            "steps": figures["steps"],
            "epoch": figures["epoch"],
            "loss": self._report.loss,
            "learning_rate": learning_rate(self._checkpoints().objects),
            "samples_per_second": self._report.rate,
            "remaining_seconds": self._remaining(split.total) if split and figures["steps"] else None,
            "checkpoint_step": saved.step,
            "checkpoint_bytes": saved.size if saved.step is not None else None,
            "checkpoint_seconds": saved.seconds if saved.step is not None else None,
            "checkpoint_pause_seconds": saved.pause if saved.step is not None else None,
            "checkpoint_failing": float(saved.problem is not None),
            "gpu_utilization": self._gpu.utilization(),
        }
        return Snapshot(
            {name: float(value) for name, value in now.items() if value is not None},
            step_parts(self.clock),
            self._seconds() if self._environment.rank == 0 else {},
            self._gpu.memory(),
        )

    def close(self, timeout: float) -> None:
        """Write down what is left, for at most twice `timeout` seconds."""
        if self._keeper is not None:
            self._keeper.close(timeout)
        if self._events is not None:
            self._events.close(timeout)
        if self._exporter is not None:
            self._exporter.close()

    def _seconds(self) -> dict[str, float]:
        return {name: value for name, value in self.goodput.content().items() if name not in ("since", "at")}

    def _remaining(self, step_seconds: float) -> int:
        figures = self._report.figures
        return math.ceil(max(0, figures["steps"] - figures["step"]) * step_seconds)

    def _log(self, content: Mapping[str, Any]) -> None:
        """One point of each curve."""
        now = time.monotonic()
        step = self._report.figures["step"]
        if self._environment.rank != 0 or now < self._next_point or not step:
            return
        self._next_point = now + POINT_EVERY
        points: dict[str, float | None] = {
            "train/loss": self._report.loss,
            "train/epoch": self._report.figures["epoch"],
            "train/learning_rate": float(content["learningRate"]) if "learningRate" in content else None,
            "train/samples_per_second": self._report.rate or None,
            **{f"step_seconds/{name}": float(value) for name, value in content.get("stepTime", {}).items()},
            **{f"gpu_memory_bytes/{name}": value for name, value in self._gpu.memory().items()},
            **{f"test/{name}": value for name, value in self._report.metrics.items()},
        }
        at, known = time.time(), {name: value for name, value in points.items() if value is not None}
        if self._events is not None:
            self._events.add(step, at, known)
        if len(self._rows) >= LONGEST_CURVE:
            self._rows = self._rows[::2]
        self._rows.append((step, at, known))
