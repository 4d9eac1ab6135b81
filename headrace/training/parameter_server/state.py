"""What one server holds: its part of the weights, the optimizer's state, and where each worker stands.

Everything here is guarded by one lock; who must wait for others waits for its condition. Gradients are decoded, and
weights encoded, outside of it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.api.trainingjob import ParameterServer
from headrace.training.parameter_server.membership import Membership
from headrace.training.state import flatten, unflatten

logger = logging.getLogger(__name__)

RECHECK = 1.0
"""Seconds between two looks at whether a worker that is waited for has fallen silent."""


@dataclass(frozen=True, slots=True)
class Push:
    """A gradient as it arrived.

    Attributes:
        rank: Worker.
        clock: Pushes of this worker, this one included.
        step: Steps of its own work that it has taken.
        sequence: Number of the push within the process, so that one that is sent twice counts once.
        learning_rate: Step size for it.
        weight: Rows behind it; a Synchronous round weighs by them.
        gradient: Vector of the shard's size.
    """

    rank: int
    clock: int
    step: int
    sequence: int
    learning_rate: float
    weight: float
    gradient: Any


class ShardState:
    """The state of one server, once a worker has said what the model is.

    Args:
        size: Values of the shard.
        workers: Workers of the run.
        settings: Consistency and optimizer.
        log: Takes a line of JSON for each time that weights are handed out: worker, its clock, the slowest worker's,
            and the version of the weights.
    """

    def __init__(
        self, size: int, workers: int, settings: ParameterServer, log: Callable[[str], None] | None = None
    ) -> None:
        import torch

        self._settings = settings
        self._synchronous = settings.consistency == "Synchronous"
        self._weights = torch.nn.Parameter(torch.zeros(size))
        self._weights.grad = torch.zeros(size)
        self._optimizer = _optimizer(settings.optimizer, self._weights)
        self._log = log
        self.changed = threading.Condition()
        self.membership = Membership(workers, settings)
        self.initialized = False
        self.version = 0
        """Updates of the weights so far."""
        self.round = 0
        """Rounds completed (Synchronous)."""
        self.dropped = 0
        """Gradients that came after their round was complete."""
        self._contributors: set[int] = set()
        self._weight = 0.0
        self._rate = 0.0

    def initialize(self, weights: Any) -> None:
        """Take the first weights, unless there are some."""
        with self.changed:
            if not self.initialized:
                self._weights.data.copy_(weights)
                self.initialized = True
                self.changed.notify_all()

    def push(self, push: Push) -> None:
        """Apply a gradient, or add it to its round.

        Raises:
            ArithmeticError: the gradient is not finite.
        """
        import torch

        if not bool(torch.isfinite(push.gradient.sum())):
            raise ArithmeticError(f"worker {push.rank} sent a gradient with NaN or infinity at its step {push.step}")
        with self.changed:
            member = self.membership.members[push.rank]
            member.seen = time.monotonic()
            if push.sequence <= member.sequence:
                return  # It was sent again since the answer was lost.
            if not self.initialized:
                return  # The server came back with nothing: worker 0 will say what the weights were.
            member.sequence, member.step, member.awaited = push.sequence, push.step, True
            if self._synchronous:
                self._contribute(push)
            else:
                member.clock = push.clock
                self._step(push.gradient, push.learning_rate)
            self.changed.notify_all()

    def weights(self, rank: int, clock: int, first: bool) -> tuple[Any, int]:
        """A copy of the weights and its version, when the worker may have them.

        Args:
            rank: Worker.
            clock: Its clock; in Synchronous, rounds that must be complete.
            first: The worker has only joined, and goes on from what there is.

        Raises:
            ConnectionError: the worker's place was taken by a successor.
        """
        with self.changed:
            member = self.membership.members[rank]
            incarnation = member.incarnation
            if not self._synchronous:
                member.clock = clock
                self.changed.notify_all()
            while not self._may_have(rank, clock, first):
                self.changed.wait(RECHECK)
                if member.incarnation != incarnation:
                    raise ConnectionError(f"worker {rank} has a successor")
                member.seen = time.monotonic()  # It waits for us.
            copy, version = self._weights.detach().clone(), self.version
            if self._log is not None:
                floor = self.membership.floor(time.monotonic())
                facts = {"rank": rank, "clock": clock, "slowest": floor, "version": version}
                self._log(json.dumps(facts))
            return copy, version

    def peek(self) -> tuple[Any, int]:
        """A copy of the weights as they are, for somebody who takes no part."""
        with self.changed:
            return self._weights.detach().clone(), self.version

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything, copied: JSON, and tensors by name."""
        with self.changed:
            tree, tensors = flatten(
                {
                    "weights": self._weights.detach(),
                    "optimizer": self._optimizer.state_dict(),
                    "version": self.version,
                    "round": self.round,
                    "members": self.membership.facts(time.monotonic()),
                }
            )
            return tree, {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}

    def restore(self, tree: Any, tensors: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        saved = unflatten(tree, tensors)
        with self.changed:
            self._weights.data.copy_(saved["weights"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.version, self.round = saved["version"], saved["round"]
            self.membership.restore(saved["members"], time.monotonic())
            self.initialized = True
            self.changed.notify_all()

    def facts(self) -> dict[str, Any]:
        """How things stand, as JSON."""
        with self.changed:
            return {
                "initialized": self.initialized,
                "version": self.version,
                "round": self.round,
                "dropped": self.dropped,
                "workers": self.membership.facts(time.monotonic()),
                "allFinished": self.membership.all_finished,
            }

    def _contribute(self, push: Push) -> None:
        """A gradient of a round. Under the lock."""
        member = self.membership.members[push.rank]
        number = push.clock - 1
        if number > self.round:
            # This server came back from its checkpoint and the others went on meanwhile: follow them.
            self._begin_round(number)
        if number < self.round or push.rank in self._contributors:
            self.dropped += 1
            member.clock = push.clock
            return
        member.clock = push.clock
        gradient = self._weights.grad
        if gradient is None:
            raise RuntimeError("the weights lost their gradient")
        if not self._contributors:
            gradient.zero_()
        gradient.add_(push.gradient, alpha=push.weight)
        self._contributors.add(push.rank)
        self._weight += push.weight
        self._rate = push.learning_rate
        self._complete()

    def _complete(self) -> None:
        """Take the round's step if all are there. Under the lock."""
        if not self._contributors or len(self._contributors) < self.membership.round_size(time.monotonic()):
            return
        gradient = self._weights.grad
        if gradient is not None and self._weight > 0:
            self._step(gradient.div_(self._weight), self._rate)
        self._begin_round(self.round + 1)
        self.changed.notify_all()

    def _begin_round(self, number: int) -> None:
        self.round = number
        self._contributors.clear()
        self._weight = 0.0

    def _may_have(self, rank: int, clock: int, first: bool) -> bool:
        if not self.initialized:
            return False
        if self._synchronous:
            self._complete()  # A worker that was waited for may have gone.
            return first or self.round >= clock
        return self.membership.may_go_on(rank, time.monotonic())

    def _step(self, gradient: Any, learning_rate: float) -> None:
        """Under the lock."""
        self._weights.grad = gradient
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self.version += 1


def _optimizer(name: str, weights: Any) -> Any:
    """Each works value by value, so a shard takes the steps that the whole model would. Pushes bring the step size."""
    from torch import optim

    classes = {"SGD": optim.SGD, "Adagrad": optim.Adagrad, "Adam": optim.Adam}
    return classes[name]([weights], lr=1.0)
