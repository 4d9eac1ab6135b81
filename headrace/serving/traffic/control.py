"""Where requests go beside the chain, as the operator says it to a running router, and what comes of them.

The operator's word is a file (the kubelet shows an annotation of the pod there), looked at every period. A change of
percents takes effect with the next request; nothing is restarted and no request is lost. A canary's replicas are looked
for from the moment that it is named, so that they are known when its first request comes. A request of its arm goes
down a chain of its own: the canary, then all steps of the stable chain, so what the canary does not answer the stable
model does. A shadow's replicas are looked for in the same way; it gets copies of what the primary answers.

A word that cannot be read changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from headrace.api.chain import PREDICTOR, RemotePredictor
from headrace.api.counts import TrafficReport
from headrace.api.routing import CANARY, SHADOW, STABLE, ShadowRoute, Traffic
from headrace.serving.chain import Chain, Guarded, Result
from headrace.serving.traffic.allocator import Allocator, WeightedSplit
from headrace.serving.traffic.counts import Counts
from headrace.serving.traffic.mirror import Mirror, ShadowMetrics

log = logging.getLogger(__name__)


class Upstream(Protocol):
    """Replicas of one model, and the step that asks them."""

    @property
    def guarded(self) -> Guarded:
        """The step."""

    async def run(self) -> None:
        """Keep the list of replicas until cancelled."""

    def close(self) -> None:
        """Give back connections."""


class ArmMetrics(Protocol):
    """Where the figures of arms go."""

    def arm(self, name: str, result: Result, seconds: float) -> None:
        """Count a request of an arm."""


@dataclass(slots=True)
class Arm:
    """One arm: the chain that its requests go down, and its counts since the last word."""

    name: str
    chain: Chain
    counts: Counts


@dataclass(slots=True)
class _Running:
    """An upstream, what it was made for, and the task that watches its replicas."""

    target: RemotePredictor
    upstream: Upstream
    watch: asyncio.Task[None]

    def stop(self) -> None:
        self.watch.cancel()
        self.upstream.close()


class Figures(ArmMetrics, ShadowMetrics, Protocol):
    """Where all figures go."""


class TrafficControl:
    """The split of one router.

    Args:
        file: The operator's word; None for a router on its own.
        stable: The chain of the service.
        connect: Makes the upstream of a canary or a shadow.
        metrics: Told of each request that has more than one place to go.
        on_report: Called when `report` is another than before.
        clock: Loop time.
        period: Seconds between two looks.
    """

    def __init__(
        self,
        file: Path | None,
        stable: Chain,
        connect: Callable[[str, RemotePredictor], Upstream],
        metrics: Figures,
        on_report: Callable[[], None],
        clock: Callable[[], float],
        period: float,
    ) -> None:
        self.unit_header = ""
        self.report: TrafficReport | None = None
        self._file = file
        self._stable = stable
        self._connect = connect
        self._metrics = metrics
        self._on_report = on_report
        self._clock = clock
        self._period = period
        self._text = ""
        self._traffic: Traffic | None = None
        self._allocator: Allocator | None = None
        self._arms: dict[str, Arm] = {}
        self._beside: dict[str, _Running] = {}
        self.mirror: Mirror | None = None
        self._report_at = 0.0

    @property
    def percent(self) -> int:
        """Percent of the requests that the canary gets."""
        canary = self._traffic.canary if self._traffic else None
        return canary.percent if canary else 0

    @property
    def steps(self) -> tuple[Guarded, ...]:
        """Steps beside those of the stable chain."""
        return tuple(running.upstream.guarded for running in self._beside.values())

    def choose(self, unit: str) -> Arm | None:
        """The arm of a request; None while there is only one."""
        return self._arms[self._allocator.allocate(unit)] if self._allocator is not None else None

    def answered(self, arm: Arm, result: Result, seconds: float) -> None:
        """Count what came of a request."""
        arm.counts.request(result, seconds)
        self._metrics.arm(arm.name, result, seconds)

    async def run(self) -> None:
        """Follow the operator's word until cancelled."""
        try:
            while True:
                self.look()
                await asyncio.sleep(self._period)
        finally:
            self._mirror(None)
            for name in (CANARY, SHADOW):
                self._follow(name, None)

    def look(self) -> None:
        """Read the word, and count up for the next report when it is time."""
        for running in self._beside.values():
            if running.watch.done():
                running.watch.result()  # a failure ends the server, as that of any of its tasks does
        if (text := self._read()) is not None and text != self._text:
            self._text = text
            self._take(text)
        counting = self._allocator is not None or self.mirror is not None
        if self._traffic is not None and counting and self._clock() >= self._report_at:
            self._report_at = self._clock() + self._traffic.report_seconds
            self._say(self._traffic)

    def _read(self) -> str | None:
        if self._file is None:
            return None
        try:
            return self._file.read_text().strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            log.warning("the traffic file cannot be read", extra={"fields": {"reason": str(error)}})
            return None

    def _take(self, text: str) -> None:
        try:
            traffic = Traffic.model_validate_json(text) if text else None
        except ValidationError as error:
            log.error("the traffic file is not understood; nothing changes", extra={"fields": {"reason": str(error)}})
            return
        before, self._traffic = self.percent, traffic
        canary = traffic.canary if traffic is not None else None
        self.unit_header = traffic.unit_header.lower() if traffic is not None else ""
        self._allocator = None
        self._mirror(traffic.shadow if traffic is not None else None)
        upstream = self._follow(CANARY, canary)
        if canary is not None and canary.percent > 0 and upstream is not None:
            tried = self._stable.after(upstream.guarded)
            self._arms = {
                STABLE: Arm(STABLE, self._stable, Counts(PREDICTOR)),
                CANARY: Arm(CANARY, tried, Counts(CANARY)),
            }
            self._allocator = WeightedSplit(canary.salt, {STABLE: 100 - canary.percent, CANARY: canary.percent})
        self._report_at = self._clock() + (traffic.report_seconds if traffic is not None else 0.0)
        if self.percent != before:
            log.info("canary percent changed", extra={"fields": {"from": before, "to": self.percent}})
        self._say(traffic)

    def _mirror(self, route: ShadowRoute | None) -> None:
        """Mirror to this shadow and to no other; one that stays as it is goes on counting."""
        if self.mirror is not None and self.mirror.route == route:
            return
        if self.mirror is not None:
            self.mirror.close()
        self.mirror = None
        upstream = self._follow(SHADOW, route)
        if route is not None and upstream is not None:
            self.mirror = Mirror(route, upstream.guarded, self._metrics, self._clock)

    def _follow(self, name: str, route: RemotePredictor | None) -> Upstream | None:
        """Watch the replicas of this canary or shadow and of no other."""
        target = None
        if route is not None:
            fields = {field: getattr(route, field) for field in RemotePredictor.model_fields}
            target = RemotePredictor.model_validate(fields)
        running = self._beside.get(name)
        if running is not None and running.target == target:
            return running.upstream
        if running is not None:
            self._beside.pop(name).stop()
        if target is None:
            return None
        upstream = self._connect(name, target)
        watch = asyncio.get_running_loop().create_task(upstream.run())
        self._beside[name] = _Running(target, upstream, watch)
        return upstream

    def _say(self, traffic: Traffic | None) -> None:
        if traffic is None:
            self.report = None
        else:
            counts = {name: arm.counts.snapshot() for name, arm in self._arms.items()} if self._allocator else {}
            shadow = None if self.mirror is None else self.mirror.counts()
            self.report = TrafficReport(revision=traffic.revision, shadow=shadow, **counts)
        self._on_report()
