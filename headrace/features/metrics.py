"""Metrics of a feature server."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from headrace.features.answer import MISSING, PRESENT, STALE, Answer
from headrace.features.cache import RowCache

_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Metrics:
    """Prometheus metrics; names are in docs/features.md."""

    def __init__(self, name: str, cache: RowCache) -> None:
        self.registry = CollectorRegistry()
        labels = ("feature_set",)
        self._values = Counter(
            "headrace_features_values",
            "Feature values by status: Present, Missing or Stale",
            (*labels, "status"),
            registry=self.registry,
        )
        self._absent = Counter(
            "headrace_features_absent",
            "Values of a feature that were Missing or Stale",
            (*labels, "feature", "status"),
            registry=self.registry,
        )
        self._requests = Counter(
            "headrace_features_requests", "Requests by HTTP status", (*labels, "code"), registry=self.registry
        )
        self._seconds = Histogram(
            "headrace_features_request_seconds",
            "Time of a request, from its body to its answer",
            labels,
            buckets=_BUCKETS,
            registry=self.registry,
        ).labels(name)
        self.loaded = Gauge(
            "headrace_features_loaded",
            "1 while the online store has rows for this transform",
            labels,
            registry=self.registry,
        ).labels(name)
        for metric, what, read in (
            ("headrace_features_cache_entities", "Rows in the cache", lambda: float(len(cache))),
            ("headrace_features_cache_hits", "Entities answered from the cache", lambda: float(cache.hits)),
            ("headrace_features_cache_misses", "Entities that the cache had not", lambda: float(cache.misses)),
        ):
            Gauge(metric, what, labels, registry=self.registry).labels(name).set_function(read)
        self._name = name
        self._by_status = {status: self._values.labels(name, status) for status in (PRESENT, MISSING, STALE)}

    def answered(self, answer: Answer) -> None:
        """Count an answer's values."""
        for status, count in answer.counts.items():
            if count:
                self._by_status[status].inc(count)
        if answer.counts[MISSING] or answer.counts[STALE]:
            absent: dict[tuple[str, str], int] = {}
            for row in answer.statuses:
                for feature, status in zip(answer.features, row, strict=True):
                    if status is not PRESENT:
                        absent[feature, status] = absent.get((feature, status), 0) + 1
            self._count(absent)

    def _count(self, absent: Mapping[tuple[str, str], int]) -> None:
        for (feature, status), count in absent.items():
            self._absent.labels(self._name, feature, status).inc(count)

    def requested(self, code: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(self._name, str(code)).inc()
        self._seconds.observe(seconds)
