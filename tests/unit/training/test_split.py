"""Cutting a chain of layers into stages."""

from __future__ import annotations

import itertools
import random

import pytest

from headrace.training.strategy.groups import group_by_place
from headrace.training.strategy.split import balanced


def brute_force(costs: list[float], stages: int) -> float:
    """The best cut's dearest stage by trying all."""
    inner = range(1, len(costs))
    return min(
        max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cuts, len(costs))))
        for cuts in itertools.combinations(inner, stages - 1)
    )


@pytest.mark.parametrize("stages", [1, 2, 3, 5, 9])
def test_no_other_cut_has_a_faster_slowest_stage(stages: int) -> None:
    generator = random.Random(stages)
    for _ in range(20):
        costs = [generator.random() for _ in range(9)]
        cut = balanced(costs, stages)
        assert [layer for stage in cut for layer in stage] == list(range(9))
        assert all(len(stage) > 0 for stage in cut)
        assert max(sum(costs[layer] for layer in stage) for stage in cut) == pytest.approx(brute_force(costs, stages))


def test_more_stages_than_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="2 layers cannot be cut into 3 stages"):
        balanced([1.0, 1.0], 3)


def test_processes_without_a_known_place_are_alone() -> None:
    assert group_by_place(["zone-b", "", "zone-a", "zone-b", ""]) == ((0, 3), (1,), (2,), (4,))
