"""A job that is killed ten times ends with the weights of one that never was, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

from tests.image.forks import run_module


def test_ten_kills_change_no_bit_of_the_result(tmp_path: Path) -> None:
    result = json.loads(run_module("survival", tmp_path).splitlines()[-1])
    assert result["resumed"] >= 5, "the kills must have come after checkpoints to show anything"
    assert result["whole"][0] == result["whole"][1]
    assert result["killed"] == result["whole"]
