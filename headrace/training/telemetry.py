"""What a worker shows of itself while it trains: Prometheus metrics of each process, TensorBoard logs of the run.

All of it is read when somebody asks (a scrape, a report): a step costs a few additions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.training.step_clock import StepClock

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Snapshot:
    """What is known of a process right now.

    Attributes:
        figures: Numbers by metric name without its prefix, such as `step` or `loss`.
        parts: Seconds of a step by part.
        seconds: Seconds of the run by what they were spent on; of worker 0 only.
        memory: Bytes of GPU memory by kind.
    """

    figures: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)


HELP = {
    "step": "Optimiser steps finished.",
    "steps": "Optimiser steps in all.",
    "epoch": "Epochs finished.",
    "loss": "Training loss of the last reported step.",
    "learning_rate": "Learning rate of the first parameter group.",
    "samples_per_second": "Samples per second, over all workers.",
    "remaining_seconds": "Seconds until the last step at the present pace.",
    "checkpoint_step": "Step of the last checkpoint that is whole in storage.",
    "checkpoint_bytes": "Size of the last checkpoint.",
    "checkpoint_seconds": "From the state that the last checkpoint holds until it was whole.",
    "checkpoint_pause_seconds": "How long the last checkpoint held training up.",
    "checkpoint_failing": "1 while the last checkpoint could not be saved.",
    "gpu_utilization": "Share of time in which the GPU computed, 0 to 1 (NVML).",
}


class Exporter:
    """Serves a process's metrics.

    Args:
        snapshot: What is known now; called at each scrape.
        labels: Of every metric.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], labels: Mapping[str, str]) -> None:
        self._snapshot = snapshot
        self._labels = dict(labels)
        self._server: Any = None

    def collect(self) -> Iterator[Any]:
        """The metrics, for prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        now = self._snapshot()
        names, values = list(self._labels), list(self._labels.values())
        for name, value in now.figures.items():
            gauge = GaugeMetricFamily(f"headrace_training_{name}", HELP[name], labels=names)
            gauge.add_metric(values, value)
            yield gauge
        several = (
            (GaugeMetricFamily, "step_part_seconds", "Seconds of a step by what they are spent on.", "part", now.parts),
            (CounterMetricFamily, "seconds", "Seconds of the run by what they were spent on.", "spent_on", now.seconds),
            (GaugeMetricFamily, "gpu_memory_bytes", "Bytes of GPU memory (torch's allocator).", "kind", now.memory),
        )
        for family, name, text, label, content in several:
            if content:
                metric = family(f"headrace_training_{name}", text, labels=[*names, label])
                for key, value in content.items():
                    metric.add_metric([*values, key], value)
                yield metric

    def serve(self, port: int) -> bool:
        """Answer at `/metrics` of a port. That it cannot is logged, and no more.

        Returns:
            Whether it does.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._server, _ = start_http_server(port, registry=registry)
        except OSError as error:
            logger.warning("metrics are not served at port %d: %s", port, error)
            return False
        return True

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def learning_rate(objects: Mapping[str, Any]) -> float | None:
    """Of the first optimizer among the things that are saved."""
    for item in objects.values():
        groups = getattr(item, "param_groups", None)
        if groups:
            return float(groups[0]["lr"])
    return None


class GPU:
    """Use of this process's GPU; nothing without CUDA.

    Args:
        device: The process's `torch.device`.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._has_nvml = device.type == "cuda"

    def memory(self) -> dict[str, float]:
        """Bytes by kind: allocated, reserved, and the most that was allocated at once."""
        if self._device.type != "cuda":
            return {}
        import torch

        stats = torch.cuda.memory_stats(self._device)
        return {
            "allocated": float(stats.get("allocated_bytes.all.current", 0)),
            "reserved": float(stats.get("reserved_bytes.all.current", 0)),
            "peak": float(stats.get("allocated_bytes.all.peak", 0)),
        }

    def utilization(self) -> float | None:
        """Share of time in which it computed; None where NVML is not installed."""
        if not self._has_nvml:
            return None
        import torch

        try:
            return float(torch.cuda.utilization(self._device)) / 100
        except (ImportError, RuntimeError) as error:
            self._has_nvml = False
            logger.info("the GPU's utilisation is not known: %s", error)
            return None


def step_parts(clock: StepClock) -> dict[str, float]:
    """Seconds of a step by part; empty before there was one."""
    split = clock.split()
    if split is None:
        return {}
    return {"data": split.data, "communication": split.communication, "compute": split.compute}
