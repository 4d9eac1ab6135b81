"""Where to cut a chain of layers into stages, so that the slowest stage is as fast as it can be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

REPEATS = 5
"""Times that a layer is measured; the median counts."""


def balanced(costs: Sequence[float], stages: int) -> tuple[range, ...]:
    """The cut into `stages` runs of consecutive layers, none empty, with the least cost of the dearest one.

    Exact, by dynamic programming over the last cut in O(layers^2 stages): linear partition (Skiena 2008, 8.5).

    Args:
        costs: Of each layer.
        stages: How many runs.

    Returns:
        Layers of each stage. Of equally good cuts the one with the earlier stages shorter.

    Raises:
        ValueError: there are fewer layers than stages.

    >>> [list(stage) for stage in balanced([1, 1, 1, 3], 2)]
    [[0, 1, 2], [3]]
    """
    layers = len(costs)
    if not 1 <= stages <= layers:
        raise ValueError(f"{layers} layers cannot be cut into {stages} stages")
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    # best[n][k]: the dearest stage of the first n layers in k stages; cut[n][k]: where the k-th begins.
    infinity = float("inf")
    best = [[infinity] * (stages + 1) for _ in range(layers + 1)]
    cut = [[0] * (stages + 1) for _ in range(layers + 1)]
    best[0][0] = 0.0
    for n in range(1, layers + 1):
        for k in range(1, min(n, stages) + 1):
            for start in range(k - 1, n):
                cost = max(best[start][k - 1], sums[n] - sums[start])
                if cost < best[n][k]:
                    best[n][k], cut[n][k] = cost, start
    found: list[range] = []
    end = layers
    for k in range(stages, 0, -1):
        start = cut[end][k]
        found.append(range(start, end))
        end = start
    return tuple(reversed(found))


def profile(layers: Sequence[Any], example: Any) -> list[float]:
    """Seconds of one forward and backward pass of each layer, the median of five.

    Args:
        layers: Modules, each taking what the one before gives.
        example: Input of the first one, on the layers' device.
    """
    import statistics

    import torch

    seconds: list[float] = []
    given = example
    for layer in layers:
        times: list[float] = []
        for _ in range(REPEATS):
            entering = given.detach().requires_grad_(given.is_floating_point())
            _settle(given.device)
            started = time.perf_counter()
            leaving = layer(entering)
            leaving.backward(torch.ones_like(leaving))
            _settle(given.device)
            times.append(time.perf_counter() - started)
        layer.zero_grad(set_to_none=True)
        seconds.append(statistics.median(times))
        given = leaving.detach()
    return seconds


def _settle(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
