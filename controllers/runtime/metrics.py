"""The operator's metrics, under the names that controller-runtime and client-go gave them.

Dashboards and alerts written for any controller-runtime operator work for this one. The registry is given, so a
process may have several sets and a test its own.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from controllers.runtime.objects import Manifest

_RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_QUEUE_BUCKETS = (1e-4, 1e-3, 0.01, 0.1, 0.5, 1, 5, 10, 60, 300)


class Metrics:
    """Every metric of one operator process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.reconciles = Counter(
            "controller_runtime_reconcile_total",
            "Reconciles by result: success, requeue_after, wait, retry, terminal, error",
            ("controller", "result"),
            registry=registry,
        )
        self.reconcile_errors = Counter(
            "controller_runtime_reconcile_errors_total",
            "Reconciles that failed and are tried again",
            ("controller",),
            registry=registry,
        )
        self.terminal_errors = Counter(
            "controller_runtime_terminal_reconcile_errors_total",
            "Reconciles that ended because the spec cannot work",
            ("controller",),
            registry=registry,
        )
        self.panics = Counter(
            "controller_runtime_reconcile_panics_total",
            "Reconciles that ended with an unexpected exception",
            ("controller",),
            registry=registry,
        )
        self.reconcile_time = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Length of a reconcile",
            ("controller",),
            registry=registry,
            buckets=_RECONCILE_BUCKETS,
        )
        self.active_workers = Gauge(
            "controller_runtime_active_workers", "Workers busy now", ("controller",), registry=registry
        )
        self.max_workers = Gauge(
            "controller_runtime_max_concurrent_reconciles", "Workers in all", ("controller",), registry=registry
        )
        self.requests = Counter(
            "rest_client_requests_total",
            "Requests to the API server by status; code <error> is one without an answer",
            ("code", "method", "host"),
            registry=registry,
        )
        self.request_time = Histogram(
            "rest_client_request_duration_seconds",
            "Length of a request to the API server; of a watch, until it began",
            ("verb", "host"),
            registry=registry,
        )
        self.leader = Gauge(
            "leader_election_master_status", "1 while this process leads, otherwise 0", ("name",), registry=registry
        )
        self.cached_objects = Gauge(
            "headrace_cached_objects", "Objects in the watch cache", ("resource",), registry=registry
        )
        self.watch_contact = Gauge(
            "headrace_watch_silence_seconds",
            "Seconds since the API server last said anything about the type",
            ("resource",),
            registry=registry,
        )
        self.reviews = Counter(
            "headrace_admission_reviews_total",
            "Admission reviews by result: allowed, warned, refused, or failed by a bug (and allowed)",
            ("kind", "result"),
            registry=registry,
        )
        self.review_time = Histogram(
            "headrace_admission_review_duration_seconds", "Length of an admission review", ("kind",), registry=registry
        )
        self.certificate_expiry = Gauge(
            "headrace_webhook_certificate_expiry_timestamp_seconds",
            "When the certificate that the webhook serves expires, Unix time; 0 while there is none",
            registry=registry,
        )
        self.kind_served = Gauge(
            "headrace_kind_served",
            "1 while the API server serves the kind to the leader, 0 while its CRD is missing",
            ("kind",),
            registry=registry,
        )
        self._depth = Gauge("workqueue_depth", "Keys ready to be worked on", ("name",), registry=registry)
        self._adds = Counter("workqueue_adds_total", "Keys added", ("name",), registry=registry)
        self._retries = Counter("workqueue_retries_total", "Keys tried again", ("name",), registry=registry)
        self._waited = Histogram(
            "workqueue_queue_duration_seconds",
            "Time from added to taken by a worker",
            ("name",),
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        )
        self._worked = Histogram(
            "workqueue_work_duration_seconds",
            "Time that a worker has a key",
            ("name",),
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        )
        self._unfinished = Gauge(
            "workqueue_unfinished_work_seconds",
            "Sum of the time that keys at work now have been there; growing means a worker hangs",
            ("name",),
            registry=registry,
        )
        self._longest = Gauge(
            "workqueue_longest_running_processor_seconds",
            "Longest time that a key at work now has been there",
            ("name",),
            registry=registry,
        )
        self._resources = _ResourceCounts()
        registry.register(self._resources)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def observe_requests(self, host: str) -> Callable[[str, int, float], None]:
        """An observer for an ApiClient of this host."""

        def observe(method: str, status: int, seconds: float) -> None:
            self.requests.labels(str(status) if status else "<error>", method, host).inc()
            self.request_time.labels(method, host).observe(seconds)

        return observe

    def resources(self, kind: str, every: Callable[[], Iterable[Manifest]]) -> None:
        """Count the resources of a kind by their Ready condition, whenever somebody asks; `every` returns them."""
        self._resources.kinds[kind] = every

    def queue(self, name: str) -> QueueReporter:
        """The reporter of the queue of this name."""
        return QueueReporter(self, name)


class QueueReporter:
    """Tells the metrics about one queue; a `controllers.runtime.queue.QueueMetrics`."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._depth = metrics._depth.labels(name)
        self._adds = metrics._adds.labels(name)
        self._retries = metrics._retries.labels(name)
        self._waited = metrics._waited.labels(name)
        self._worked = metrics._worked.labels(name)
        self._unfinished = metrics._unfinished.labels(name)
        self._longest = metrics._longest.labels(name)

    def follow(self, starts: Callable[[], Iterable[float]]) -> None:
        """Report how long what is at work now has been there; `starts` gives the start times by time.monotonic."""

        def ages() -> list[float]:
            now = time.monotonic()
            return [now - since for since in starts()]

        self._unfinished.set_function(lambda: sum(ages()))
        self._longest.set_function(lambda: max(ages(), default=0.0))

    def added(self, depth: int) -> None:
        """A key came in; `depth` keys wait now."""
        self._adds.inc()
        self._depth.set(depth)

    def taken(self, depth: int, waited: float) -> None:
        """A worker took a key that waited this many seconds."""
        self._depth.set(depth)
        self._waited.observe(waited)

    def finished(self, worked: float) -> None:
        """A worker is done with a key after this many seconds."""
        self._worked.observe(worked)

    def retried(self) -> None:
        """A key is to be tried again after a failure."""
        self._retries.inc()


class _ResourceCounts:
    """A collector that looks at the resources when it is asked, so that no reconcile has to keep figures up to date."""

    def __init__(self) -> None:
        self.kinds: dict[str, Callable[[], Iterable[Manifest]]] = {}

    def collect(self) -> Iterable[Metric]:
        """One sample per kind, Ready status and reason."""
        family = GaugeMetricFamily(
            "headrace_resources", "Resources by kind and Ready condition", labels=("kind", "ready", "reason")
        )
        for kind, every in self.kinds.items():
            for (status, reason), count in sorted(Counts(map(_ready, every())).items()):
                family.add_metric((kind, status, reason), count)
        yield family


def _ready(manifest: Manifest) -> tuple[str, str]:
    """Status and reason of the Ready condition."""
    for condition in (manifest.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready":
            return condition["status"], condition["reason"]
    return "Unknown", ""
