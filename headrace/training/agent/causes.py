"""Why a round ended: which of several failures was the first cause, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headrace.training.errors import EXIT_CONFIGURATION, EXIT_GATE_NOT_MET, EXIT_INTERRUPTED

EXIT_HUNG = 124
"""What timeout(1) uses: the process was ended because it made no progress."""
EXIT_OUT_OF_MEMORY = 137
"""128 + SIGKILL, as the kernel ends a process for want of memory."""

_LOST_PEER = re.compile(
    r"connection (was )?(reset|closed|refused|aborted)|broken pipe|\bpeers?\b|remote process|socket timeout|"
    "timed out waiting|DistNetworkError|DistBackendError|unhandled system error|watchdog",
    re.IGNORECASE,
)
"""What gloo, NCCL and the rendezvous store say when another rank went away."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of one training process.

    Attributes:
        index: Number of its worker.
        rank: Its rank.
        code: Exit code; 128 + signal for one that was killed.
        message: Its last words.
        out_of_memory: The kernel killed something of its container for want of memory.
        at: When it ended, on the coordinator's clock.
    """

    index: int
    rank: int
    code: int
    message: str = ""
    out_of_memory: bool = False
    at: float = 0.0

    def order(self) -> tuple[bool, bool, bool, float, int]:
        """Sort key that puts the root cause first: those that only lost a peer or were told to stop come last."""
        lost_peer = _LOST_PEER.search(self.message) is not None
        told = self.code == EXIT_INTERRUPTED
        return (not self.out_of_memory, told, lost_peer, self.at, self.rank)

    def message_form(self, now: float) -> dict[str, Any]:
        """For a message; clocks of two machines have nothing in common, so it says how long ago."""
        return asdict(self) | {"age": now - self.at}

    @classmethod
    def parse(cls, index: int, told: Any, now: float) -> Failure:
        """From a message; a malformed one becomes a failure that says so."""
        try:
            return cls(
                index=index,
                rank=int(told["rank"]),
                code=int(told["code"]),
                message=str(told["message"])[:1000],
                out_of_memory=bool(told["out_of_memory"]),
                at=now - float(told["age"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            return cls(index=index, rank=-1, code=1, message=f"an unreadable report of a failure: {error!r}", at=now)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a round ended.

    Attributes:
        reason: CamelCase, as in the job's conditions.
        message: For a person.
        counted: It counts against restartPolicy.maxRestarts.
        fatal: Another round is of no use.
        index: Worker that caused it; -1: nobody in particular.
        code: Exit code for that worker when the job ends of it.
    """

    reason: str
    message: str
    counted: bool = False
    fatal: bool = False
    index: int = -1
    code: int = 1


def first_cause(failures: Sequence[Failure]) -> Cause:
    """What the failures of a round come from; at least one."""
    first = min(failures, key=Failure.order)
    said = f": {first.message}" if first.message else ""
    who = f"rank {first.rank} (worker {first.index})"
    if first.code == EXIT_GATE_NOT_MET:
        return Cause(
            "GateNotMet", first.message or "the model misses spec.evaluation", True, True, first.index, first.code
        )
    if first.code == EXIT_CONFIGURATION:
        message = f"{who} says that the configuration or the data cannot work{said}"
        return Cause("InvalidConfiguration", message, True, True, first.index, first.code)
    if first.out_of_memory:
        message = f"{who} ran out of memory; raise resources.limits.memory"
        return Cause("OutOfMemory", message, True, False, first.index, EXIT_OUT_OF_MEMORY)
    if first.code == EXIT_INTERRUPTED:
        return Cause("WorkerInterrupted", f"{who} was told to stop (SIGTERM)", False, False, first.index, first.code)
    how = f"was killed by signal {first.code - 128}" if first.code > 128 else f"ended with exit code {first.code}"
    return Cause("WorkerFailed", f"{who} {how}{said}", True, False, first.index, first.code)
