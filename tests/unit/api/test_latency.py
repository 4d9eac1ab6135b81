"""Quantiles from buckets, against numpy's on the values themselves."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from headrace.api.chain import RouterReport
from headrace.api.counts import ArmCounts, ShadowCounts, TrafficReport
from headrace.api.inferenceservice import StepStatus
from headrace.api.latency import BUCKETS, bucket, quantile, upper_end


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_a_quantile_is_at_most_a_tenth_above_numpys(q: float) -> None:
    seconds = np.random.default_rng(1).lognormal(mean=-4, sigma=1, size=5000)
    true = float(np.quantile(seconds, q, method="inverted_cdf"))
    found = quantile(Counter(map(bucket, seconds.tolist())), q)
    assert found is not None
    assert true <= found * (1 + 1e-9)
    assert found <= true * 1.1 * (1 + 1e-9)


def test_counts_of_two_routers_add_up() -> None:
    one, two = Counter({bucket(0.010): 99}), Counter({bucket(1.0): 1})
    assert quantile(one + two, 0.99) == upper_end(bucket(0.010))
    assert quantile(one + two, 1.0) == upper_end(bucket(1.0))


def test_the_longest_report_fits_in_an_annotation() -> None:
    latency = dict.fromkeys(range(BUCKETS), 10**9)
    arm = ArmCounts(requests=10**9, errors=10**9, fallbacks=10**9, latency=latency)
    shadow = ShadowCounts(revision="r", example="x" * 200, primary_latency=latency, shadow_latency=latency)
    steps = [StepStatus(name="s" * 63, state="NotReady", reason="r" * 300)] * 9
    traffic = TrafficReport(revision="r" * 16, stable=arm, canary=arm, shadow=shadow)
    report = RouterReport(answering="predictor", steps=steps, traffic=traffic)
    # The chart's policy on reports allows as many bytes.
    assert len(json.dumps(report.manifest(), separators=(",", ":"))) < 32768


def test_nothing_counted_and_the_ends() -> None:
    assert quantile({}, 0.99) is None
    assert bucket(0.0) == 0
    assert bucket(1e9) == BUCKETS - 1
