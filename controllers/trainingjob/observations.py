"""What the trainer measures of itself, as figures and conditions of the status."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from controllers.runtime.conditions import Wanted
from controllers.runtime.plan import Event
from controllers.trainingjob.report import Report, ReportedGoodput
from headrace.api.trainingjob import CheckpointStatus, Goodput, RegisteredModel, StepTime, TrainingJobStatus

FAILING = "CheckpointFailing"
DAMAGED = "CheckpointDamaged"
REGISTERED = "Registered"


def figures(before: TrainingJobStatus, report: Report | None) -> dict[str, Any]:
    """The status's fields that come from the report; without one they stay as they were."""
    found: dict[str, Any] = {
        "step_time": before.step_time,
        "goodput": before.goodput,
        "checkpoint": before.checkpoint,
        "registered": before.registered,
    }
    if report is None:
        return found
    if report.step_time is not None:
        found["step_time"] = StepTime(**report.step_time.model_dump())
    if report.goodput is not None:
        found["goodput"] = goodput(report.goodput, before.start_time)
    if report.checkpoint is not None and report.checkpoint.step:
        found["checkpoint"] = CheckpointStatus(
            step=report.checkpoint.step,
            bytes=report.checkpoint.bytes,
            seconds=report.checkpoint.seconds,
            pause_seconds=report.checkpoint.pause_seconds,
        )
    if report.registered is not None and report.registered.version:
        found["registered"] = RegisteredModel(**report.registered.model_dump(exclude={"problem"}))
    return found


def goodput(said: ReportedGoodput, started: datetime | None) -> Goodput:
    """The account of the trainer, from the job's start: before the first session it was starting up."""
    began = min(started.timestamp(), said.since) if started is not None else said.since
    wall = max(said.at - began, 0.0)
    startup = said.startup + said.since - began
    known = said.useful + startup + said.restart + said.checkpoint + said.lost_steps + said.hang
    return Goodput(
        percent=min(100, int(100 * said.useful / wall)) if wall else 0,
        useful_seconds=round(said.useful),
        startup_seconds=round(startup),
        restart_seconds=round(said.restart),
        checkpoint_seconds=round(said.checkpoint),
        lost_step_seconds=round(said.lost_steps),
        hang_seconds=round(said.hang),
        other_seconds=max(0, round(wall - known)),
    )


def wanted(report: Report | None) -> list[Wanted]:
    """Conditions that are there only while they have something to say."""
    found: list[Wanted] = []
    if report is None:
        return found
    checkpoint = report.checkpoint
    if checkpoint is not None and checkpoint.problem is not None:
        kept = f"the checkpoint of step {checkpoint.step} is kept" if checkpoint.step else "earlier ones are kept"
        found.append(
            Wanted(
                FAILING,
                True,
                checkpoint.problem.reason,
                f"the last checkpoint could not be saved, training goes on and {kept}: {checkpoint.problem.message}",
            )
        )
    if report.registered is not None:
        said = report.registered
        if said.problem:
            found.append(Wanted(REGISTERED, False, "RegistrationFailed", said.problem))
        elif said.version:
            found.append(Wanted(REGISTERED, True, "Registered", f"version {said.version} of {said.model}: {said.url}"))
    return found


def events(before: TrainingJobStatus, report: Report | None, conditions: Iterable[Any]) -> list[Event]:
    """Events for what was not so before."""
    found: list[Event] = []
    was = {item.type: item for item in before.conditions}
    for item in conditions:
        if item["type"] == FAILING and (FAILING not in was or was[FAILING].reason != item["reason"]):
            found.append(Event("Warning", item["reason"], item["message"], "Checkpoint"))
        elif item["type"] == REGISTERED and REGISTERED not in was:
            good = item["status"] == "True"
            found.append(Event("Normal" if good else "Warning", item["reason"], item["message"], "Register"))
    passed_over = report.checkpoint.passed_over if report is not None and report.checkpoint is not None else ""
    resumed = report.resumed_from_step if report is not None else None
    # Said with the first report of an attempt, which is also the first that says where it resumed.
    if passed_over and (resumed is None or resumed != before.progress.resumed_from_step):
        found.append(Event("Warning", DAMAGED, passed_over, "Restore"))
    return found
