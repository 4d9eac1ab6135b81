"""The three ways in which a reconcile may not succeed."""

from __future__ import annotations

from datetime import timedelta


class ReconcileError(Exception):
    """Base of the typed errors of a reconcile.

    Attributes:
        reason: CamelCase reason of the Ready condition and of the Event.
        message: For a person: which field or object, what was found, what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class RetryError(ReconcileError):
    """Something failed that may work next time; tried again with exponential backoff."""


class WaitError(ReconcileError):
    """Something named must exist first; looked at again when it changes or after `after`."""

    def __init__(self, reason: str, message: str, after: timedelta = timedelta(seconds=30)) -> None:
        super().__init__(reason, message)
        self.after = after


class TerminalError(ReconcileError):
    """The spec cannot work as it is; not tried again before it changes."""
