"""Where a run stands: which attempt is current, which pods belong to it, and which are left over.

The status is the durable record and may lag behind the pods (a stale cache, a leader that died between two writes), so
the counters are the highest that status and pods know of. An attempt ends in two steps, each a reconcile of its own:
first the next attempt is written into the status together with the restart it costs, then the pods of the ended one
are deleted. The evidence is never gone before the verdict is on record, and writing the same verdict twice changes
nothing: no restart is counted twice, none is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controllers.runtime.objects import Manifest
from controllers.runtime.podstate import (
    condition,
    has_condition,
    is_finished,
    is_ready,
    is_terminating,
    moment,
    name_of,
    node_of,
    phase,
)
from controllers.trainingjob.group import Group, group_of
from controllers.trainingjob.names import ATTEMPT, FIRST_ROUND, RECENT, RESTARTS, runs_agents, worker_name
from controllers.trainingjob.observed import Observed
from headrace.api.meta import Condition, parse_duration
from headrace.api.trainingjob import TrainingJob, TrainingJobStatus

NODE_NOT_READY_AFTER = timedelta(seconds=30)
"""Time for a kubelet that itself says it is not ready. Ready=Unknown has the cluster's own grace period behind it."""
NODE_KNOWN_AFTER = timedelta(minutes=2)
"""Age of a binding at which its node is cached if it exists: a dead watch is noticed after 100 s (`cache.SILENCE`)."""
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"


@dataclass(frozen=True, slots=True)
class Run:
    """The current attempt and its surroundings.

    Attributes:
        job: The resource.
        observed: What the caches hold.
        now: The time.
        attempt: Number of the current attempt, from 1.
        pod_attempt: The attempt that the current pods were made for.
        restarts: Counted restarts up to it.
        recent: When those of them were that are within restartPolicy.window.
        group: What the agents say; None without agents and before they say something.
        workers: The current attempt's pod of each worker, None where there is none.
        leftovers: Pods of earlier attempts.
        complete: All workers of the current attempt were seen on a node, so one that is absent is gone, not late.
    """

    job: TrainingJob
    observed: Observed
    now: datetime
    attempt: int
    pod_attempt: int
    restarts: int
    recent: Sequence[datetime]
    group: Group | None
    workers: Sequence[Manifest | None]
    leftovers: Sequence[Manifest]
    complete: bool

    @classmethod
    def of(cls, job: TrainingJob, observed: Observed, now: datetime) -> Run:
        """The run as status and pods together tell it."""
        status = job.status or TrainingJobStatus()
        pods = observed.pods
        names = [worker_name(job.metadata.name, index) for index in range(job.spec.num_workers)]
        recorded = status.pod_attempt or status.attempt
        pod_attempt = max([1, recorded, *(attempt_of(pod) for pod in pods.values())])
        current = {name: pods[name] for name in names if name in pods and attempt_of(pods[name]) == pod_attempt}
        group = group_of(current.get(names[0])) if runs_agents(job) else None
        return cls(
            job=job,
            observed=observed,
            now=now,
            attempt=max(
                [pod_attempt, status.attempt, *map(first_round_of, current.values()), group.round if group else 0]
            ),
            pod_attempt=pod_attempt,
            restarts=max([status.restarts, *map(restarts_of, pods.values()), group.restarts if group else 0]),
            recent=_recent(job, status, pods.values(), group, now),
            group=group,
            workers=[current.get(name) for name in names],
            leftovers=[pod for name, pod in pods.items() if name not in current],
            complete=recorded == pod_attempt and is_true(status, "Scheduled"),
        )

    @property
    def has_surplus(self) -> bool:
        """The job was scaled down, and there are workers of this attempt that are not wanted any more."""
        return any(attempt_of(pod) == self.pod_attempt for pod in self.leftovers)

    @property
    def waits_for_missing(self) -> bool:
        """The agents of the others wait for a pod that is gone. Not once some have ended: they agreed to."""
        return runs_agents(self.job) and not any(is_finished(pod) for pod in self.present)

    @property
    def next_round(self) -> int:
        """The first attempt that a pod which is made now may take part in."""
        return self.attempt + (runs_agents(self.job) and (self.complete or self.attempt > self.pod_attempt))

    @property
    def budget_is_used_up(self) -> bool:
        """No further restart may be counted now."""
        policy = self.job.spec.restart_policy
        used = len(self.recent) if parse_duration(policy.window) else self.restarts
        return used >= policy.max_restarts

    @property
    def present(self) -> list[Manifest]:
        """Pods of the current attempt in rank order."""
        return [pod for pod in self.workers if pod is not None]

    def name(self, index: int) -> str:
        """Name of the pod of one worker."""
        return worker_name(self.job.metadata.name, index)

    def node_trouble(self, pod: Manifest) -> str | None:
        """Why the pod's node must be given up, or None.

        That the cache has no such node may only mean that it lags behind: it counts where the pod is on its way out, or
        is not well and has been on the node for longer than a watch can stall unnoticed. (The cluster itself deletes
        the pods of a node that is gone, whatever their age.)
        """
        name = node_of(pod)
        if not name:
            return None
        node = self.observed.nodes.get(name)
        if node is None:
            unwell = has_condition(pod, "Ready", "False") and self._is_settled(pod)
            return f"node {name} no longer exists" if unwell or is_terminating(pod) else None
        if any(taint["key"] == OUT_OF_SERVICE for taint in node.get("spec", {}).get("taints") or ()):
            return f"node {name} is out of service"
        ready = condition(node, "Ready")
        if ready is None or ready["status"] == "True":
            return None
        since = moment(ready.get("lastTransitionTime"))
        if ready["status"] == "False" and since is not None and self.now - since < NODE_NOT_READY_AFTER:
            return None
        return f"node {name} is not ready ({ready.get('reason') or 'no reason given'})"

    def _is_settled(self, pod: Manifest) -> bool:
        scheduled = condition(pod, "PodScheduled")
        since = moment(scheduled.get("lastTransitionTime")) if scheduled is not None else None
        return since is not None and self.now - since >= NODE_KNOWN_AFTER


def attempt_of(pod: Manifest) -> int:
    """The attempt that a pod was made for; 0 when its label was tampered with, so that it counts as left over."""
    return _number((pod["metadata"].get("labels") or {}).get(ATTEMPT))


def restarts_of(pod: Manifest) -> int:
    """Counted restarts when the pod was made."""
    return _number((pod["metadata"].get("annotations") or {}).get(RESTARTS))


def first_round_of(pod: Manifest) -> int:
    """The first attempt that a pod may take part in."""
    return _number((pod["metadata"].get("annotations") or {}).get(FIRST_ROUND))


def _recent(
    job: TrainingJob, status: TrainingJobStatus, pods: Iterable[Manifest], group: Group | None, now: datetime
) -> list[datetime]:
    """Counted restarts within the window, as status, pods and agents know of them, in whole seconds."""
    window = parse_duration(job.spec.restart_policy.window)
    known = {int(at.timestamp()) for at in status.recent_restarts}
    for pod in pods:
        known |= {_number(at) for at in ((pod["metadata"].get("annotations") or {}).get(RECENT) or "").split(",")}
    known |= {int(at) for at in (group.recent if group else ())}
    moments = [datetime.fromtimestamp(at, UTC) for at in sorted(known - {0})]
    return [at for at in moments if window and now - at < window][-1000:]


def is_true(status: TrainingJobStatus, type_: str) -> bool:
    """Whether a condition of the status holds."""
    found = condition_of(status, type_)
    return found is not None and found.status == "True"


def condition_of(status: TrainingJobStatus, type_: str) -> Condition | None:
    """One condition of the status."""
    return next((item for item in status.conditions if item.type == type_), None)


def is_working(pod: Manifest) -> bool:
    """Running, or done with success."""
    return is_ready(pod) or phase(pod) == "Succeeded" or _has_exited_well(pod)


def _has_exited_well(pod: Manifest) -> bool:
    """Its containers ended with success and the kubelet has not said so of the pod yet."""
    ended = [status.get("state", {}).get("terminated") for status in pod.get("status", {}).get("containerStatuses", [])]
    return bool(ended) and all(state is not None and state.get("exitCode") == 0 for state in ended)


def names(pods: Sequence[Manifest]) -> str:
    """Pod names for a message, at most three of them."""
    shown = ", ".join(name_of(pod) for pod in pods[:3])
    return shown if len(pods) <= 3 else f"{shown} and {len(pods) - 3} more"


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 11 else 0
