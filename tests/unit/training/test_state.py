"""A state that goes into a checkpoint comes out equal, without pickle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from headrace.training.state import flatten, unflatten


def round_trip(value: Any) -> Any:
    tree, tensors = flatten(value)
    return unflatten(json.loads(json.dumps(tree)), tensors)


def test_an_optimizer_state_survives() -> None:
    # The form of torch.optim.Adam's state_dict: integer keys, tuples, tensors of several shapes, None.
    moments = {"step": np.float32(3), "exp_avg": np.ones((2, 3), np.float32)}
    state = {
        "state": {0: moments, 1: {**moments, "exp_avg": np.zeros(4, np.float32)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": [0, 1]}],
    }
    got = round_trip({"optimizer": state, "empty": {}, "none": []})

    assert got["optimizer"]["param_groups"] == state["param_groups"]
    assert list(got["optimizer"]["state"]) == [0, 1]
    np.testing.assert_array_equal(got["optimizer"]["state"][1]["exp_avg"], np.zeros(4, np.float32))
    assert (got["empty"], got["none"]) == ({}, [])


def test_numbers_keep_every_bit() -> None:
    numbers = [0.1, 1e-320, 2**100, -0.0, float("inf")]
    assert round_trip(numbers) == numbers


def test_tensors_are_named_by_their_path() -> None:
    _, tensors = flatten({"model": {"0.weight": np.ones(1)}, "history": [np.zeros(1)]})
    assert sorted(tensors) == ["history.0", "model.0.weight"]


def test_paths_that_collide_keep_both_tensors() -> None:
    got = round_trip({"a": {"b": np.array([1])}, "a.b": np.array([2])})
    assert (got["a"]["b"][0], got["a.b"][0]) == (1, 2)


def test_a_key_that_looks_like_a_marker_is_only_a_key() -> None:
    assert round_trip({"$": "tensor", "name": "x"}) == {"$": "tensor", "name": "x"}


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(TypeError, match=r"scheduler\.fn is a function"):
        flatten({"scheduler": {"fn": test_numbers_keep_every_bit}})
