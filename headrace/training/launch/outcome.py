"""What `headrace.training.run` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run that succeeded.

    Attributes:
        value: What the function returned on worker 0.
        metrics: Final metrics by name, as it reported them.
        model_uri: Where the model is, if it published one.
        job: Name of the TrainingJob; None for a run on this machine.
    """

    value: Any
    metrics: dict[str, float]
    model_uri: str | None
    job: str | None


class TrainingFailed(RuntimeError):
    """The run failed; the text says why."""
