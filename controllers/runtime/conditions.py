"""metav1 conditions: set by type, with the transition time kept while the status stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from headrace.api.meta import Condition, rfc3339


@dataclass(frozen=True, slots=True)
class Wanted:
    """A condition as a plan computes it: no times, those follow from what was there before."""

    type: str
    status: bool | None
    reason: str
    message: str = ""


def conditions(
    wanted: Iterable[Wanted], before: Sequence[Condition], generation: int, now: datetime
) -> list[dict[str, Any]]:
    """The conditions of a status in API form.

    Args:
        wanted: Every condition that the status is to have; a None status is Unknown.
        before: The conditions now in the resource.
        generation: metadata.generation of the spec that they were computed from.
        now: Time of a transition.

    Returns:
        One mapping per wanted condition, in the order given.
    """
    earlier = {condition.type: condition for condition in before}
    result: list[dict[str, Any]] = []
    for item in wanted:
        status = "Unknown" if item.status is None else str(item.status)
        previous = earlier.get(item.type)
        same = previous is not None and previous.status == status
        moment = previous.last_transition_time if same and previous is not None else now
        result.append(
            {
                "type": item.type,
                "status": status,
                "reason": item.reason,
                "message": item.message,
                "lastTransitionTime": rfc3339(moment),
                "observedGeneration": generation,
            }
        )
    return result
