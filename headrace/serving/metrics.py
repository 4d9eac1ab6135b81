"""Figures of predictor and router for Prometheus; each label combination is looked up once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from headrace.api.chain import PREDICTOR
from headrace.api.routing import CANARY, SHADOW
from headrace.drift import Drift
from headrace.serving.chain import Guarded, Reason, Result

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Seconds."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def outcome(status: int) -> str:
    """What an HTTP status means for the caller."""
    return "ok" if status < 400 else "client_error" if status < 500 else "error"


class RouterMetrics:
    """The registry of a router.

    Args:
        service: Name of the service, a label of every figure.
        replicas: Tells how many replicas are ready.
    """

    def __init__(self, service: str, replicas: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._service = service
        self._requests = Counter(
            "headrace_inference_requests_total",
            "Inference requests by the step that answered (empty when none did) and the outcome.",
            ["service", "step", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "headrace_inference_step_seconds",
            "Time that a step took for a request that it was asked, answered or not.",
            ["service", "step"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._fallbacks = Counter(
            "headrace_inference_fallbacks_total",
            "Requests that a step did not answer, by reason.",
            ["service", "from_step", "reason"],
            registry=self.registry,
        )
        ready = Gauge(
            "headrace_inference_replicas", "Predictor replicas that are ready.", ["service"], registry=self.registry
        )
        ready.labels(service).set_function(replicas)
        self._arm_requests = Counter(
            "headrace_inference_arm_requests_total",
            "Inference requests by arm, step that answered (empty when none did) and outcome, while there are arms.",
            ["service", "arm", "step", "outcome"],
            registry=self.registry,
        )
        self._arm_seconds = Histogram(
            "headrace_inference_arm_seconds",
            "Time of an inference request of an arm, fallbacks included.",
            ["service", "arm"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._shadowed = Counter(
            "headrace_inference_shadow_requests_total",
            "Mirrored requests by outcome: same, different, error (the shadow did not answer), dropped (it was busy).",
            ["service", "outcome"],
            registry=self.registry,
        )
        self._shadow_seconds = Histogram(
            "headrace_inference_shadow_seconds",
            "Time that the primary and the shadow took for the same requests.",
            ["service", "of"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._request_counters: dict[tuple[str, str], Counter] = {}

    def request(self, step: str, status: int) -> None:
        """Count a request that `step` answered with `status`; an empty step means that none did."""
        key = step, outcome(status)
        counter = self._request_counters.get(key)
        if counter is None:
            counter = self._request_counters[key] = self._requests.labels(self._service, *key)
        counter.inc()

    def split(self, percent: Callable[[], float]) -> None:
        """Show the percent of the requests that the canary gets."""
        gauge = Gauge(
            "headrace_inference_arm_percent",
            "Percent of the requests that this router was told to give to an arm.",
            ["service", "arm"],
            registry=self.registry,
        )
        gauge.labels(self._service, CANARY).set_function(percent)

    def arm(self, name: str, result: Result, seconds: float) -> None:
        """Count a request of an arm."""
        status = 503 if result.reply is None else result.reply.status
        self._arm_requests.labels(self._service, name, result.step, outcome(status)).inc()
        self._arm_seconds.labels(self._service, name).observe(seconds)

    def shadow(self, outcome: str, primary_seconds: float | None, seconds: float | None) -> None:
        """Count a mirrored request: same, different, error or dropped; times where both answered."""
        self._shadowed.labels(self._service, outcome).inc()
        if primary_seconds is not None and seconds is not None:
            self._shadow_seconds.labels(self._service, PREDICTOR).observe(primary_seconds)
            self._shadow_seconds.labels(self._service, SHADOW).observe(seconds)

    def step(self, name: str) -> StepFigures:
        """Where the chain reports one step."""
        return StepFigures(
            self._seconds.labels(self._service, name),
            {reason: self._fallbacks.labels(self._service, name, reason.value) for reason in Reason},
        )

    def watch(self, steps: Callable[[], Iterable[Guarded]]) -> None:
        """Show the state of each step's breaker and its requests in flight."""
        self.registry.register(_StepGauges(self._service, steps))


class PredictorMetrics:
    """The registry of a predictor.

    Args:
        service: Name of the service, a label of every figure.
        in_flight: Tells how many requests are running and waiting.
    """

    def __init__(self, service: str, in_flight: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        requests = Counter(
            "headrace_predictor_requests_total",
            "Inference requests to a replica by outcome.",
            ["service", "outcome"],
            registry=self.registry,
        )
        seconds = Histogram(
            "headrace_predictor_request_seconds",
            "Time of an inference request in a replica, waiting included.",
            ["service"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        busy = Gauge(
            "headrace_predictor_in_flight", "Requests running and waiting.", ["service"], registry=self.registry
        )
        busy.labels(service).set_function(in_flight)
        batches = Histogram(
            "headrace_predictor_batch_rows",
            "Rows of a run where requests are batched.",
            ["service"],
            buckets=ROWS,
            registry=self.registry,
        )
        self.batch: Callable[[float], None] = batches.labels(service).observe
        self._service = service
        self._outcomes = {name: requests.labels(service, name) for name in ("ok", "client_error", "error")}
        self._seconds = seconds.labels(service)

    def drift(self, drift: Drift) -> None:
        """Show how served rows differ from those of the training."""
        self.registry.register(_DriftGauges(self._service, drift))

    def request(self, status: int, seconds: float) -> None:
        """Count a request."""
        self._outcomes[outcome(status)].inc()
        self._seconds.observe(seconds)


class _DriftGauges:
    """A collector that reads the counts of served rows when it is asked."""

    def __init__(self, service: str, drift: Drift) -> None:
        self._service = service
        self._drift = drift

    def collect(self) -> Iterable[Metric]:
        """The gauges of every column."""
        psi = GaugeMetricFamily(
            "headrace_predictor_feature_psi",
            "Population stability index of a column of the served rows against the training rows.",
            labels=["service", "feature"],
        )
        missing = GaugeMetricFamily(
            "headrace_predictor_feature_missing", "Share of missing values of a column.", labels=["service", "feature"]
        )
        for figures in self._drift.figures():
            labels = [self._service, figures.name]
            missing.add_metric(labels, figures.missing)
            if figures.psi is not None:
                psi.add_metric(labels, figures.psi)
        return [psi, missing]


class StepFigures:
    """The figures of one step."""

    def __init__(self, seconds: Histogram, fallbacks: dict[Reason, Counter]) -> None:
        self._seconds = seconds
        self._fallbacks = fallbacks

    def answered(self, seconds: float) -> None:
        """The step answered."""
        self._seconds.observe(seconds)

    def missed(self, reason: Reason, seconds: float | None) -> None:
        """The step did not."""
        if seconds is not None:
            self._seconds.observe(seconds)
        self._fallbacks[reason].inc()


class _StepGauges:
    """A collector that reads the steps when it is asked."""

    def __init__(self, service: str, steps: Callable[[], Iterable[Guarded]]) -> None:
        self._service = service
        self._steps = steps

    def collect(self) -> Iterable[Metric]:
        """The gauges of every step."""
        in_flight = GaugeMetricFamily(
            "headrace_inference_in_flight", "Requests in flight to a step.", labels=["service", "step"]
        )
        state = GaugeMetricFamily(
            "headrace_inference_breaker_state",
            "Circuit breaker of a step: 0 closed, 1 half-open, 2 open.",
            labels=["service", "step"],
        )
        for guarded in self._steps():
            labels = [self._service, guarded.step.name]
            in_flight.add_metric(labels, guarded.in_flight)
            if guarded.breaker is not None:
                state.add_metric(labels, guarded.breaker.state)
        return [in_flight, state]
