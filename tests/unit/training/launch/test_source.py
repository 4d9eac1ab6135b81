"""What becomes of a function that is sent: a script that can be read, and says what it lacks."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.training.launch.screen import Screen
from headrace.training.launch.source import SourceError, script_of

RATE = 0.5
LAYERS = [8, 4]
TABLE = np.zeros(3)


class Base:
    def rate(self) -> float:
        return RATE


class Model(Base):
    def __init__(self, scale: float = RATE) -> None:
        self.parts = [math.sqrt(size) * scale for size in LAYERS]


def helper(values: list[float]) -> np.ndarray[Any, Any]:
    return np.asarray(values)


def train(epochs: int, words: str = "") -> dict[str, Any]:
    model = Model()
    return {"epochs": epochs, "sum": float(helper(model.parts).sum()), "most": Counter(words).most_common(1)}


def uses_an_array() -> Any:
    return TABLE


def uses_what_is_not_there() -> Any:
    return missing  # type: ignore[name-defined]  # noqa: F821


def test_a_function_comes_with_what_it_uses_and_nothing_else(tmp_path: Path) -> None:
    script = script_of(train, {"epochs": 3, "words": "aab"}, "mark")
    assert "import numpy as np\n" in script
    assert "from collections import Counter\n" in script
    assert "TABLE" not in script
    assert "pytest" not in script
    # Without a session: what would call it is replaced.
    body = script.partition('if __name__ == "__main__":')[0]
    path = tmp_path / "train.py"
    path.write_text(body + "\nimport json\nprint(json.dumps(train(3, 'aab')))\n")
    found = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(found.stdout) == json.loads(json.dumps(train(3, "aab")))


def test_what_cannot_be_sent_is_named_with_the_remedy() -> None:
    with pytest.raises(SourceError, match=r"uses_an_array uses TABLE, a ndarray, .*as an argument"):
        script_of(uses_an_array, {}, "mark")
    with pytest.raises(SourceError, match="uses missing, which is not defined"):
        script_of(uses_what_is_not_there, {}, "mark")
    rate = 0.1

    def inner() -> float:
        return rate

    with pytest.raises(SourceError, match="inner uses rate of the function around it: pass it as an argument"):
        script_of(inner, {}, "mark")
    with pytest.raises(SourceError, match="define one with def"):
        script_of(lambda: 1, {}, "mark")
    with pytest.raises(SourceError, match="must be JSON"):
        script_of(train, {"epochs": {1, 2}}, "mark")
    with pytest.raises(SourceError, match="missing a required argument: 'epochs'"):
        script_of(train, {}, "mark")


def test_the_screen_shows_the_log_and_takes_results_out_of_it() -> None:
    out = io.StringIO()
    screen = Screen("mark", out, bar=False)
    for line in (
        "hello",
        'mark progress {"step": 5, "steps": 10, "loss": "0.5"}',
        'mark progress {"step": 10, "steps": 10, "metrics": {"accuracy": 0.9}}',
        'mark result {"a": 1}',
        'mark result {"cut off',
    ):
        screen.line(line)
    screen.close()
    assert out.getvalue() == "hello\nstep 5 of 10, loss 0.5\nstep 10 of 10, loss 0.5\n"
    assert screen.value == {"a": 1}
    assert screen.report["metrics"] == {"accuracy": 0.9}
