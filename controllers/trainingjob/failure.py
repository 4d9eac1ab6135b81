"""How an attempt ended, if it did: a chain of small rules, the first that applies speaks.

What is nobody's fault (a lost node, an eviction, a deleted pod) comes before a worker's own failure, since the other
ranks of a collective fail in consequence of a lost one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from typing import NamedTuple

from controllers.runtime.objects import Manifest
from controllers.runtime.podstate import (
    condition,
    container_statuses,
    has_condition,
    is_finished,
    is_terminating,
    last_line,
    moment,
    name_of,
    phase,
)
from controllers.trainingjob.names import WORKER, runs_agents
from controllers.trainingjob.run import Run, condition_of, names
from headrace.api.trainingjob import TrainingJobStatus

SETTLING = timedelta(seconds=3)
"""After the first failure of a group, time for the others' ends to be told, so that the cause is among them."""
OUT_OF_REACH = timedelta(seconds=60)
"""Time that the agents wait for one whose pod runs before the pod is replaced."""
EX_CONFIG = 78
GATE_NOT_MET = 79
LINK_UNUSABLE = 80
HUNG = 124
"""What an agent ends with whose training process made no progress."""
SIGKILL = 128 + 9
SIGTERM = 128 + 15


class Outcome(Enum):
    """What follows from the end of an attempt."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    """Another attempt is of no use."""
    OWN_FAULT = "OwnFault"
    """Another attempt, counted against restartPolicy.maxRestarts."""
    LOST = "Lost"
    """Another attempt, not counted."""


class Verdict(NamedTuple):
    """The end of an attempt, its CamelCase reason, and the words for it."""

    outcome: Outcome
    reason: str
    message: str


_LOST_PEER = re.compile(
    r"connection (was )?(reset|closed|refused|aborted)|broken pipe|\bpeers?\b|remote process|socket timeout|"
    "timed out waiting|DistNetworkError|DistBackendError|unhandled system error|watchdog",
    re.IGNORECASE,
)
"""What gloo, NCCL and the rendezvous store say when another rank went away."""


class Exit(NamedTuple):
    """How a container of a failed pod ended."""

    pod: Manifest
    rank: int
    container: str
    code: int
    reason: str
    message: str
    finished: datetime | None

    def order(self) -> tuple[bool, bool, bool, float, bool, int]:
        """Sort key that puts the root cause first.

        Out of memory before all; those asked to stop last, and before them those that only lost a peer, whatever the
        nodes' clocks say; then the earliest.
        """
        at = self.finished.timestamp() if self.finished else float("inf")
        lost_peer = _LOST_PEER.search(self.message) is not None
        return (self.reason != "OOMKilled", self.code == SIGTERM, lost_peer, at, self.code <= 128, self.rank)


def judge(run: Run) -> Verdict | None:
    """The end of the current attempt, or None while it goes on."""
    for rule in RULES:
        verdict = rule(run)
        if verdict is not None:
            return verdict
    return None


def lost_workers(run: Run) -> list[tuple[Manifest, Verdict]]:
    """Pods that are lost while the agents of the others wait for a replacement, each with what became of it."""
    if not runs_agents(run.job) or any(phase(pod) == "Succeeded" for pod in run.present):
        return []
    rules = (
        _deleted,
        _disrupted,
        partial(_on_lost_node, run),
        partial(_told_to_stop, run),
        partial(_out_of_reach, run),
    )
    found: list[tuple[Manifest, Verdict]] = []
    for pod in run.present:
        verdict = next((verdict for rule in rules if (verdict := rule(pod)) is not None), None)
        if verdict is not None:
            found.append((pod, verdict))
    lost = {name_of(pod) for pod, _ in found}
    # One that ended for a reason of its own ends them all.
    return [] if any(phase(pod) == "Failed" and name_of(pod) not in lost for pod in run.present) else found


def _told_to_stop(run: Run, pod: Manifest) -> Verdict | None:
    """The agent left after a SIGTERM that nobody signed, as a node sends when it shuts down."""
    if phase(pod) != "Failed" or all(is_finished(other) for other in run.present if other is not pod):
        return None
    codes = [ended.get("exitCode") for status in container_statuses(pod) if (ended := _ended(status))]
    if SIGTERM not in codes or settling(run) is not None:
        return None
    return Verdict(Outcome.LOST, "WorkerInterrupted", f"pod {name_of(pod)} was told to stop (SIGTERM)")


def _out_of_reach(run: Run, pod: Manifest) -> Verdict | None:
    """It runs, and the others have waited for it in vain: its network is cut, or its node is frozen."""
    group, waiting = run.group, condition_of(run.job.status or TrainingJobStatus(), "Restarting")
    if group is None or waiting is None or waiting.status != "True" or phase(pod) != "Running":
        return None
    started = moment(pod["metadata"].get("creationTimestamp"))
    since = max(waiting.last_transition_time, started or waiting.last_transition_time)
    if name_of(pod) not in {run.name(index) for index in group.missing} or run.now - since < OUT_OF_REACH:
        return None
    seconds = OUT_OF_REACH.total_seconds()
    return Verdict(
        Outcome.LOST, "WorkerUnreachable", f"pod {name_of(pod)} runs and has not reached worker 0 for {seconds:g} s"
    )


def every_worker_succeeded(run: Run) -> Verdict | None:
    taking_part = _taking_part(run)
    if not all(pod is not None and phase(pod) == "Succeeded" for pod in taking_part):
        return None
    return Verdict(Outcome.SUCCEEDED, "Succeeded", f"all {len(taking_part)} workers finished")


def _taking_part(run: Run) -> list[Manifest | None]:
    """Workers of the last round: an elastic job may have asked for some that never came."""
    order = run.group.order if run.group else None
    if run.job.spec.min_workers is None or not order:
        return list(run.workers)
    return [run.workers[index] for index in order if index < len(run.workers)]


def configuration_cannot_work(run: Run) -> Verdict | None:
    ended = [item for item in own_failures(run) if item.code == EX_CONFIG]
    if not ended:
        return None
    first = min(ended, key=Exit.order)
    said = first.message or "no message; see its log"
    return Verdict(
        Outcome.FAILED,
        "InvalidConfiguration",
        f"pod {name_of(first.pod)} says that the configuration or the data cannot work (exit code {EX_CONFIG}): {said}",
    )


def gate_was_not_met(run: Run) -> Verdict | None:
    ended = [item for item in own_failures(run) if item.code == GATE_NOT_MET]
    if not ended:
        return None
    said = min(ended, key=Exit.order).message.removeprefix("error: ")
    return Verdict(Outcome.FAILED, "GateNotMet", said or "the model misses spec.evaluation; see the log of worker 0")


def link_is_unusable(run: Run) -> Verdict | None:
    ended = [item for item in own_failures(run) if item.code == LINK_UNUSABLE]
    if not ended:
        return None
    said = min(ended, key=Exit.order).message.removeprefix("error: ") or "see the log of worker 0"
    return Verdict(Outcome.FAILED, "LinkUnusable", f"topology.preflight: {said}")


_NEVER_STARTS = re.compile(
    "executable file not found|no such file or directory|permission denied|exec format error|is a directory",
    re.IGNORECASE,
)


def command_cannot_start(run: Run) -> Verdict | None:
    for item in own_failures(run):
        if item.reason in ("StartError", "ContainerCannotRun") and _NEVER_STARTS.search(item.message):
            return Verdict(
                Outcome.FAILED,
                "CommandNotFound",
                f"pod {name_of(item.pod)}: container {item.container} cannot start ({item.message}); "
                "check command and image",
            )
    return None


_DISRUPTIONS = {
    "PreemptionByScheduler": ("WorkerPreempted", "made room for a pod of higher priority"),
    "DeletionByTaintManager": ("NodeLost", "was removed because of a taint of its node"),
    "EvictionByEvictionAPI": ("WorkerEvicted", "was evicted, as by a node drain"),
    "DeletionByPodGC": ("NodeLost", "was removed because its node no longer exists"),
    "TerminationByKubelet": ("WorkerEvicted", "was ended by its node"),
}


def worker_was_deleted(run: Run) -> Verdict | None:
    return next((verdict for pod in run.present if (verdict := _deleted(pod)) is not None), None)


def _deleted(pod: Manifest) -> Verdict | None:
    if not is_terminating(pod) or phase(pod) == "Succeeded" or failed_before_deletion(pod):
        return None
    reason, what = _disruption(pod) or ("WorkerDeleted", "was deleted")
    return Verdict(Outcome.LOST, reason, f"pod {name_of(pod)} {what}")


def worker_was_disrupted(run: Run) -> Verdict | None:
    return next((verdict for pod in run.present if (verdict := _disrupted(pod)) is not None), None)


def _disrupted(pod: Manifest) -> Verdict | None:
    if phase(pod) != "Failed":
        return None
    status = pod.get("status", {})
    said = last_line(status.get("message") or "")
    if found := _disruption(pod):
        reason, what = found
        return Verdict(Outcome.LOST, reason, f"pod {name_of(pod)} {what}{f' ({said})' if said else ''}")
    if status.get("reason") in ("Evicted", "Preempting", "Shutdown", "Terminated", "NodeShutdown", "NodeLost"):
        what = f"was ended by its node: {status['reason']}"
        return Verdict(Outcome.LOST, "WorkerEvicted", f"pod {name_of(pod)} {what}{f' ({said})' if said else ''}")
    if not any(_ended(item) for item in container_statuses(pod)):
        what = f"was refused by its node: {status.get('reason') or 'no reason given'}"
        return Verdict(Outcome.LOST, "WorkerRejected", f"pod {name_of(pod)} {what}{f' ({said})' if said else ''}")
    return None


def node_is_lost(run: Run) -> Verdict | None:
    return next((verdict for pod in run.present if (verdict := _on_lost_node(run, pod)) is not None), None)


def _on_lost_node(run: Run, pod: Manifest) -> Verdict | None:
    trouble = None if is_finished(pod) else run.node_trouble(pod)
    return Verdict(Outcome.LOST, "NodeLost", f"pod {name_of(pod)}: {trouble}") if trouble is not None else None


def worker_is_missing(run: Run) -> Verdict | None:
    if not run.complete or run.waits_for_missing:
        return None
    for index, pod in enumerate(run.workers):
        if pod is None:
            return Verdict(Outcome.LOST, "WorkerDeleted", f"pod {run.name(index)} is gone")
    return None


def worker_failed(run: Run) -> Verdict | None:
    failures = own_failures(run)
    if not failures or settling(run) is not None:
        return None
    first = min(failures, key=Exit.order)
    if first.code == SIGTERM:
        # All were told to stop: by whom is no longer to be seen, but it was not they themselves.
        return Verdict(Outcome.LOST, "WorkerInterrupted", f"pod {name_of(first.pod)} was told to stop (SIGTERM)")
    others = [item.pod for item in failures if item.pod is not first.pod]
    also = f"; after it {names(others)} failed too" if others else ""
    pod = name_of(first.pod)
    if first.reason == "OOMKilled":
        limit = run.job.spec.resources.limits.get("memory")
        was = f"resources.limits.memory, which is {limit}" if limit is not None else "resources.limits.memory (not set)"
        return Verdict(Outcome.OWN_FAULT, "OutOfMemory", f"pod {pod} ran out of memory; raise {was}{also}")
    said = f": {first.message}" if first.message else ""
    if first.code == HUNG:
        return Verdict(Outcome.OWN_FAULT, "WorkerHung", f"pod {pod} made no progress{said}")
    if first.code == SIGKILL:
        said += "; it was killed, perhaps by the kernel for want of memory: see resources.limits.memory"
    if first.container != WORKER:
        return Verdict(
            Outcome.OWN_FAULT,
            "ScriptNotCloned",
            f"pod {pod} could not check out the repository (exit code {first.code}){said}; check script.git and that "
            "the nodes reach the repository",
        )
    return Verdict(Outcome.OWN_FAULT, "WorkerFailed", f"pod {pod} ended with exit code {first.code}{said}{also}")


RULES: tuple[Callable[[Run], Verdict | None], ...] = (
    every_worker_succeeded,
    configuration_cannot_work,
    gate_was_not_met,
    link_is_unusable,
    command_cannot_start,
    worker_was_deleted,
    worker_was_disrupted,
    node_is_lost,
    worker_is_missing,
    worker_failed,
)
COUNTED = ("OutOfMemory", "ScriptNotCloned", "WorkerFailed", "WorkerHung")
"""Reasons of OWN_FAULT."""


def settling(run: Run) -> timedelta | None:
    """How long the verdict on a failure waits for the other workers' ends; None when it need not."""
    if all(is_finished(pod) for pod in run.present):
        return None
    ends = [item.finished for item in own_failures(run) if item.finished is not None]
    if not ends:
        return None
    age = run.now - min(ends)
    # Nodes' clocks may be ahead of ours: that must not hold the verdict back.
    return SETTLING - age if timedelta(0) <= age < SETTLING else None


def own_failures(run: Run) -> list[Exit]:
    """Containers of the current attempt that ended with an error by themselves."""
    found: list[Exit] = []
    for rank, pod in enumerate(run.workers):
        if pod is None or phase(pod) != "Failed" or _disruption(pod):
            continue
        if is_terminating(pod) and not failed_before_deletion(pod):
            continue
        for status in container_statuses(pod):
            ended = _ended(status)
            if ended is not None and ended.get("exitCode", 0) != 0:
                found.append(
                    Exit(
                        pod=pod,
                        rank=rank,
                        container=status["name"],
                        code=ended["exitCode"],
                        reason=ended.get("reason") or "",
                        message=last_line(ended.get("message") or ""),
                        finished=moment(ended.get("finishedAt")),
                    )
                )
                break
    return found


def failed_before_deletion(pod: Manifest) -> bool:
    """The worker had ended with an error before somebody asked for its deletion."""
    if phase(pod) != "Failed" or has_condition(pod, "DisruptionTarget"):
        return False
    deadline = moment(pod["metadata"].get("deletionTimestamp"))
    if deadline is None:
        return True
    asked = deadline - timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
    ends = [moment(ended.get("finishedAt")) for status in container_statuses(pod) if (ended := _ended(status))]
    return any(end is not None and end < asked for end in ends)


def _disruption(pod: Manifest) -> tuple[str, str] | None:
    found = condition(pod, "DisruptionTarget")
    if found is None or found["status"] != "True":
        return None
    return _DISRUPTIONS.get(found.get("reason") or "", ("WorkerEvicted", f"was disrupted ({found.get('reason')})"))


def _ended(status: Manifest) -> Manifest | None:
    ended: Manifest | None = (status.get("state") or {}).get("terminated")
    return ended
