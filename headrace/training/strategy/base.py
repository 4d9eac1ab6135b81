"""What a training loop needs to know of a topology.

The loop walks over global batches in an order that is the same everywhere. A strategy says which part of each batch
this process works on, takes the optimiser step, and knows when all that is to be saved is in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Loss = Callable[[Any, Any], Any]
"""(outputs, labels) -> loss summed over the rows, a scalar tensor; rows with the label IGNORED add nothing."""
MakeOptimizer = Callable[[Any], Any]
"""Parameters -> torch optimizer."""
IGNORED = -100
"""Label of a row that only fills a batch up; the default ignore_index of torch's cross_entropy."""


class Strategy(Protocol):
    """One process's side of a topology.

    Attributes:
        part: (index, count): this process works on the index-th of count equal parts of each batch.
        counts: Whether this process's summed losses count; where several work on the same rows, one of them does.
        gathers: Whether `gather` is needed before state can be saved; all processes must then call it together.
    """

    part: tuple[int, int]
    counts: bool
    gathers: bool

    def step(self, features: Any, labels: Any, rows: int) -> Any:
        """Take one optimiser step.

        Args:
            features: This process's rows of the batch, shape (r, columns); r may be 0.
            labels: Their classes, shape (r,).
            rows: Rows of the whole batch.

        Returns:
            Loss summed over this process's rows, a detached scalar tensor.
        """

    def may_save(self) -> bool:
        """Whether the state after the last step is one to go on from."""

    def gather(self) -> None:
        """Bring the whole state to rank 0. Collective."""

    def objects(self) -> dict[str, Any]:
        """What a checkpoint holds, by name: things with torch's state_dict and load_state_dict."""

    def restored(self) -> None:
        """Take over what was loaded into `objects`. Collective, on every process after a checkpoint was read."""

    def finish(self) -> Any:
        """The trained model, whole, on rank 0's device. Collective; what it returns elsewhere is not to be used."""
