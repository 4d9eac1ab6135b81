"""A pod reports on itself: one line of JSON in an annotation of its own pod, which the operator's pod cache sees."""

from headrace.reporting.pod import ANNOTATION, PodAnnotation, ReportRefused, in_cluster
from headrace.reporting.reporter import Reporter, pod_reporter

__all__ = ["ANNOTATION", "PodAnnotation", "ReportRefused", "Reporter", "in_cluster", "pod_reporter"]
