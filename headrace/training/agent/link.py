"""A training process's side of its agent: it beats, it hands reports on, and it shows its stacks when asked."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace.training.agent import beats

REPORTS = "HEADRACE_REPORTS"
"""Descriptor of a pipe to the agent: one report per line."""
DUMP = signal.SIGUSR1
"""What asks for all stacks on standard error."""


class Link:
    """The agent of this process; without one nothing happens.

    Args:
        variables: The environment.
    """

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        path = variables.get(beats.VARIABLE, "")
        self._beats = beats.BeatWriter(Path(path)) if path else None
        if path:
            faulthandler.register(DUMP, all_threads=True)
        descriptor = variables.get(REPORTS, "")
        self._reports = int(descriptor) if descriptor else None

    @property
    def sink(self) -> Callable[[str], None] | None:
        """Takes a report as a line of JSON; None where nobody reads it."""
        return self._send if self._reports is not None else None

    def beat(self, step: int | None = None, *, finishing: bool = False) -> None:
        """See `BeatWriter.beat`."""
        if self._beats is not None:
            self._beats.beat(step, finishing=finishing)

    def computed(self, seconds: float) -> None:
        """See `BeatWriter.computed`."""
        if self._beats is not None:
            self._beats.computed(seconds)

    def _send(self, line: str) -> None:
        data = line.encode() + b"\n"
        while data and self._reports is not None:
            data = data[os.write(self._reports, data) :]
