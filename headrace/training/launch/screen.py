"""What the caller of `headrace.training.run` sees: the log of worker 0, and how far training is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TextIO

from headrace.training.launch.entry import PROGRESS, RESULT

PACE = 5.0
"""Seconds between two lines of progress where there is no bar."""


class Screen:
    """Prints lines of the log; takes those with the mark out.

    Args:
        mark: As in the script.
        total: Where to write.
        bar: Show a bar where tqdm is installed.
    """

    def __init__(self, mark: str, out: TextIO | None = None, *, bar: bool = True) -> None:
        self._mark = mark
        self._out = out or sys.stdout
        self._bar = _make_bar(self._out) if bar else None
        self._said, self._last = "", -PACE
        self.value: Any = None
        self.has_result = False
        self.report: dict[str, Any] = {}

    def line(self, text: str) -> None:
        """A line of worker 0's log."""
        if not text.startswith(f"{self._mark} "):
            self.say(text)
            return
        _, kind, content = text.split(" ", 2)
        try:
            told = json.loads(content)
        except ValueError:
            return  # a line that was cut off, of a worker that was killed
        if kind == RESULT:
            self.value, self.has_result = told, True
        elif kind == PROGRESS and isinstance(told, dict):
            self.report |= told
            self.progress(self.report)

    def say(self, text: str) -> None:
        """Something else that the caller should see."""
        if self._bar is not None:
            self._bar.write(text, file=self._out)
        else:
            print(text, file=self._out, flush=True)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """How far training is: `step` of `steps`, or `epoch` of `epochs`, and `loss`, as in a job's status."""
        unit = "step" if progress.get("steps") else "epoch"
        done, total = int(progress.get(unit) or 0), int(progress.get(f"{unit}s") or 0)
        if not total:
            return
        loss = f"loss {progress['loss']}" if progress.get("loss") else ""
        if self._bar is not None:
            self._bar.unit, self._bar.total, self._bar.n = unit, total, min(done, total)
            self._bar.set_postfix_str(loss)
            return
        text = f"{unit} {done} of {total}{f', {loss}' if loss else ''}"
        now = time.monotonic()
        if text != self._said and (now - self._last >= PACE or done == total):
            self._said, self._last = text, now
            self.say(text)

    def close(self) -> None:
        """No more comes."""
        if self._bar is not None:
            self._bar.close()


def _make_bar(out: TextIO) -> Any:
    """A bar of tqdm, which shows itself as a widget in a notebook; None where it is not installed."""
    try:
        module = import_module("tqdm.auto")
    except ImportError:
        return None
    return module.tqdm(total=None, file=out, unit="step", desc="training", leave=True)
