"""Many routers' views of one chain, merged: what the worst-off of them sees is what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.api.chain import RouterReport
from headrace.api.inferenceservice import StepStatus

State = Literal["Answering", "Standby", "Open", "NotReady", "Unknown"]

_WORST_LAST: tuple[State, ...] = ("Unknown", "Standby", "Answering", "Open", "NotReady")
"""A step that answers for one router and stands by for another answers; one that is open for any is open."""
_REASON_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Answers:
    """What the routers say together.

    Attributes:
        answering: The furthest step of the chain that a router asks first; empty when no router has any, or none said.
        steps: Every step in order.
        reported: Whether any router said anything.
        nothing: All that said something said that no step can answer.
    """

    answering: str
    steps: tuple[StepStatus, ...]
    reported: bool
    nothing: bool

    def why_not(self) -> str:
        """The steps before the answering one and what is wrong with them, as the end of a sentence; empty for none."""
        before: list[str] = []
        for step in self.steps:
            if step.name == self.answering:
                break
            if step.state in ("Open", "NotReady"):
                before.append(f"{step.name} is {step.state}" + (f" ({step.reason})" if step.reason else ""))
        return f": {', '.join(before)}" if before else ""


def merge(reports: Sequence[RouterReport], names: Sequence[str]) -> Answers:
    """The worst of all reports, for the steps of the spec in their order.

    Args:
        reports: One per ready router.
        names: Steps of the chain in order. Steps of other names (of the chain before an update) are left out.
    """
    known = [name for name in names if any(report.answering == name for report in reports)]
    return Answers(
        answering=known[-1] if known else "",
        steps=tuple(_step(name, reports) for name in names),
        reported=bool(reports),
        nothing=bool(reports) and not any(report.answering for report in reports),
    )


def _step(name: str, reports: Sequence[RouterReport]) -> StepStatus:
    seen = [step for report in reports for step in report.steps if step.name == name]
    if not seen:
        return StepStatus(name=name, state="Unknown", reason="")
    worst = max((step.state for step in seen), key=_WORST_LAST.index)
    # Of several reasons always the same one, so that the status does not change with the order of pods.
    reason = min((step.reason for step in seen if step.state == worst and step.reason), default="")
    return StepStatus(name=name, state=worst, reason=reason[:_REASON_LENGTH])
