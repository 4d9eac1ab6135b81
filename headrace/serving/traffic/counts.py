"""What a router counts of each arm while there is more than one: little enough to be told in one line."""

from __future__ import annotations

from headrace.api.counts import ArmCounts
from headrace.api.latency import bucket
from headrace.serving.chain import Reason, Result

_ERRORS = frozenset({Reason.ERROR, Reason.TIMEOUT, Reason.REFUSED})


class Counts:
    """Counts of one arm.

    Args:
        own: Name of the step that is the arm's own model.
    """

    __slots__ = ("_errors", "_fallbacks", "_latency", "_own", "_requests")

    def __init__(self, own: str) -> None:
        self._own = own
        self._requests = 0
        self._errors = 0
        self._fallbacks = 0
        self._latency: dict[int, int] = {}

    def request(self, result: Result, seconds: float) -> None:
        """Count what came of a request after so many seconds."""
        self._requests += 1
        reasons = [miss.reason for miss in result.missed if miss.step == self._own]
        # What both refuse is the caller's mistake and no fallback.
        mistake = result.reply is not None and 400 <= result.reply.status < 500 and reasons == [Reason.REFUSED]
        if result.step != self._own and not mistake:
            self._fallbacks += 1
            self._errors += any(reason in _ERRORS for reason in reasons)
        index = bucket(seconds)
        self._latency[index] = self._latency.get(index, 0) + 1

    def snapshot(self) -> ArmCounts:
        """The counts so far."""
        return ArmCounts(
            requests=self._requests, errors=self._errors, fallbacks=self._fallbacks, latency=dict(self._latency)
        )
