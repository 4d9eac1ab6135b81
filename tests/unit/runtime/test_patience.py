"""How long small news is gathered: by how long the API server takes for an answer."""

from __future__ import annotations

import pytest

from controllers.runtime.cache import CacheSet


@pytest.mark.parametrize(
    ("latency", "seconds"), [(0.0, 3.0), (0.005, 3.0), (0.1, 10.0), (0.9, 60.0)], ids=["new", "idle", "busy", "full"]
)
def test_patience_is_a_hundred_answers_within_bounds(latency: float, seconds: float) -> None:
    assert CacheSet(latency=lambda: latency).patience().total_seconds() == seconds
