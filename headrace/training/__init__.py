"""Training: a session for PyTorch scripts, and a built-in classifier.

Importing this package imports no torch: that happens when a session begins.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.training.errors import ConfigurationError, Interrupted

if TYPE_CHECKING:
    from headrace.training.classifier import train_classifier
    from headrace.training.run import Run, session

__all__ = ["ConfigurationError", "Interrupted", "Run", "session", "train_classifier"]

_MODULES = {"Run": "run", "session": "run", "train_classifier": "classifier"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
