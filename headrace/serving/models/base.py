"""What every model is, whoever made it: named tensors in, named tensors out, and a run that can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from headrace.serving.protocol import TensorSpec
from headrace.serving.tensors import Array


class ModelError(Exception):
    """The model cannot be served, now or later; the message says what was found and what to do."""


class Stopped(Exception):
    """A run was stopped before it had an answer."""


class Stop:
    """Ends a run from another thread: at once where it has not begun, else where its runtime can end it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._terminate: Callable[[], None] | None = None

    @property
    def stopped(self) -> bool:
        return self._stopped

    def bind(self, terminate: Callable[[], None]) -> None:
        """Say how the run in progress is ended."""
        with self._lock:
            self._terminate = terminate
            stopped = self._stopped
        if stopped:
            terminate()

    def stop(self) -> None:
        """End the run."""
        with self._lock:
            self._stopped = True
            terminate = self._terminate
        if terminate is not None:
            terminate()


class Model(Protocol):
    """A loaded, warmed model. `run` may be called from several threads."""

    @property
    def platform(self) -> str:
        """``platform`` of the model metadata, by the protocol's naming: `<format>_<runtime>`."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What it takes."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What it gives."""

    @property
    def output_names(self) -> Sequence[str]:
        """Names of `outputs`, in order."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], stop: Stop | None = None) -> list[Array]:
        """Outputs by the names asked for.

        Raises:
            RequestError: the inputs are not what the model takes.
            Stopped: `stop` was used.
        """


def one_line(error: BaseException, most: int = 500) -> str:
    """What a library said, on one line and without its stack trace."""
    text = " ".join(str(error).partition("Stack trace")[0].split())
    return text[:most] or type(error).__name__
