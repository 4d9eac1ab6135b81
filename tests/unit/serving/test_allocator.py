"""The split between arms: shares, the same answer for ever, and as few units moved as their shares demand."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter

import pytest

from headrace.serving.traffic.allocator import Allocator, WeightedSplit

UNITS = [f"user-{i}" for i in range(20_000)]


def arms(weights: dict[str, float], salt: str = "s") -> list[str]:
    split: Allocator = WeightedSplit(salt, weights)
    return [split.allocate(unit) for unit in UNITS]


@pytest.mark.parametrize("weights", [{"stable": 95, "canary": 5}, {"a": 1, "b": 1, "c": 2}, {"a": 0.7, "b": 0.3}])
def test_each_arm_gets_its_share(weights: dict[str, float]) -> None:
    found = Counter(arms(weights))
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        # Five standard deviations of a binomial share.
        assert abs(found[name] / len(UNITS) - share) < 5 * math.sqrt(share * (1 - share) / len(UNITS))


def test_more_percent_only_moves_units_to_the_canary_and_no_more_than_it_grows_by() -> None:
    before = arms({"stable": 100 - 5, "canary": 5})
    after = arms({"stable": 100 - 25, "canary": 25})
    moved = Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)
    assert set(moved) == {("stable", "canary")}
    assert moved["stable", "canary"] / len(UNITS) == pytest.approx(0.20, abs=0.015)


def test_an_arm_that_grows_takes_from_all_others_and_moves_nobody_between_them() -> None:
    before = arms({"a": 1, "b": 1, "c": 1})
    after = arms({"a": 1, "b": 1, "c": 4})
    moved = Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)
    assert set(moved) == {("a", "c"), ("b", "c")}
    assert sum(moved.values()) / len(UNITS) == pytest.approx(4 / 6 - 1 / 3, abs=0.015)


def test_another_salt_deals_anew() -> None:
    weights: dict[str, float] = {"a": 1, "b": 1}
    same = sum(one == two for one, two in zip(arms(weights), arms(weights, "t"), strict=True))
    assert same / len(UNITS) == pytest.approx(0.5, abs=0.02)


def test_a_restarted_process_says_the_same() -> None:
    code = (
        "from headrace.serving.traffic.allocator import WeightedSplit;"
        "s = WeightedSplit('s', {'stable': 9, 'canary': 1});"
        "print(''.join(s.allocate(f'user-{i}')[0] for i in range(200)))"
    )
    run = [sys.executable, "-c", code]
    other = subprocess.run(run, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}).stdout
    mine = WeightedSplit("s", {"stable": 9, "canary": 1})
    assert other.strip() == "".join(mine.allocate(f"user-{i}")[0] for i in range(200))
    assert {"s", "c"} == set(other.strip())


def test_requests_without_a_unit_are_dealt_at_random_by_the_same_shares() -> None:
    split = WeightedSplit("s", {"stable": 3, "canary": 1}, random.Random(5).random)
    found = Counter(split.allocate("") for _ in range(20_000))
    assert found["canary"] / 20_000 == pytest.approx(0.25, abs=0.015)


def test_weights_that_say_nothing_are_refused() -> None:
    for weights in ({}, {"a": 0.0}, {"a": -1.0, "b": 2.0}):
        with pytest.raises(ValueError, match="weights must be"):
            WeightedSplit("s", weights)


def test_an_arm_of_weight_zero_gets_nobody() -> None:
    assert set(arms({"stable": 100, "canary": 0})) == {"stable"}
