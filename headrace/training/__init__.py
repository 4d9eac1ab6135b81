"""Training: a session for PyTorch scripts, a built-in classifier, and functions of a notebook that run in a cluster.

Importing this package imports no torch: that happens when a session begins.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.training.errors import ConfigurationError, Interrupted

if TYPE_CHECKING:
    from headrace.training.classifier import train_classifier
    from headrace.training.launch import run
    from headrace.training.running import Run, session

__all__ = ["ConfigurationError", "Interrupted", "Run", "run", "session", "train_classifier"]

_MODULES = {"Run": "running", "run": "launch", "session": "running", "train_classifier": "classifier"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
