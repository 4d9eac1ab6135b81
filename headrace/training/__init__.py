"""Training: a session for PyTorch scripts, and a built-in classifier.

Importing this package imports no torch: that happens when a session begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.training.errors import ConfigurationError, Interrupted

if TYPE_CHECKING:
    from headrace.training.classifier import train_classifier
    from headrace.training.session import Run, session

__all__ = ["ConfigurationError", "Interrupted", "Run", "session", "train_classifier"]


def __getattr__(name: str) -> Any:
    if name in {"Run", "session"}:
        from headrace.training import session as module
    elif name == "train_classifier":
        from headrace.training import classifier as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
