"""The verdict on a canary."""

from __future__ import annotations

from collections import Counter

import pytest

from controllers.inferenceservice.analysis import Arm, judge, total
from headrace.api.counts import ArmCounts
from headrace.api.inferenceservice.traffic import CanaryAnalysis
from headrace.api.latency import bucket

ANALYSIS = CanaryAnalysis(minimum_requests=100)


def arm(requests: int, errors: int = 0, fallbacks: int | None = None, seconds: float = 0.01) -> Arm:
    """An arm whose requests all took as long."""
    return Arm(requests, errors, errors if fallbacks is None else fallbacks, Counter({bucket(seconds): requests}))


@pytest.mark.parametrize(
    ("stable", "canary", "analysis", "word", "said"),
    [
        (arm(1000), arm(200), {}, "Pass", "error rate 0.00 %"),
        (arm(1000), arm(99), {}, "Waiting", "99 of minimumRequests 100"),
        (arm(1000), arm(0), {}, "Waiting", "0 of minimumRequests 100"),
        (arm(1000), arm(100, errors=1), {}, "Pass", "error rate 1.00 %"),
        (arm(1000), arm(100, errors=2), {}, "Fail", "error rate 2.00 % (2 of 100 requests) is more than maxErrorRate"),
        (arm(1000), arm(1, errors=1), {}, "Waiting", "1 of"),
        (arm(1000), arm(2, errors=2), {}, "Fail", "error rate 100.00 % (2 of 2 requests)"),
        (arm(1000, errors=50), arm(200, errors=11), {}, "Pass", "error rate 5.50 % (stable 5.00 %)"),
        (arm(1000, errors=50), arm(200, errors=13), {}, "Fail", "the stable model's 5.00 % (50 of 1000)"),
        (arm(1000, errors=50), arm(200, errors=8), {"max_error_rate": 3}, "Fail", "is above maxErrorRate 3"),
        (arm(1000), arm(200, fallbacks=20), {}, "Fail", "fallback rate 10.00 % (20 of 200 requests)"),
        (arm(1000), arm(200, fallbacks=20), {"max_fallback_rate_increase": 10}, "Pass", "fallback rate 10.00 %"),
        (arm(1000), arm(200, seconds=0.02), {}, "Fail", "is more than maxLatencyIncrease 50 % above"),
        (arm(1000), arm(200, seconds=0.014), {}, "Pass", "p99"),
        (arm(1000), arm(99, seconds=0.02), {}, "Waiting", "99 of"),
        (arm(1000, fallbacks=900), arm(200, fallbacks=180), {}, "Waiting", "two that do not answer says nothing"),
        (arm(1000, fallbacks=400), arm(200, fallbacks=80), {}, "Pass", "fallback rate 40.00 %"),
        (arm(9), arm(200, seconds=0.02), {}, "Pass", "p99"),
        (arm(9), arm(200, seconds=0.02), {"max_latency": "15ms"}, "Fail", "is above maxLatency 15ms"),
    ],
)
def test_verdicts(stable: Arm, canary: Arm, analysis: dict[str, object], word: str, said: str) -> None:
    verdict = judge(ANALYSIS.model_copy(update=analysis), stable, canary)
    assert (verdict.word, said in verdict.message) == (word, True), verdict


def test_counts_of_routers_add_up() -> None:
    one = ArmCounts(requests=3, errors=1, fallbacks=2, latency={5: 2, 7: 1})
    assert total([one, one]) == Arm(6, 2, 4, {5: 4, 7: 2})
    assert total([]) == Arm()
