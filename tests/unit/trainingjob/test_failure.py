"""How an attempt ends: who is to blame, what is counted, what the words say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from controllers.runtime.cache import SILENCE
from controllers.runtime.objects import Manifest
from controllers.trainingjob.failure import Outcome, judge, settling
from controllers.trainingjob.run import NODE_KNOWN_AFTER
from headrace.api.trainingjob import TrainingJob
from tests.unit.trainingjob.worlds import (
    NODES,
    ago,
    conditions,
    ended,
    job,
    node,
    pod,
    run_of,
    running,
    scheduled,
    terminating,
    waiting,
)

JOB = job(image="team/trainer:1", resources={"limits": {"memory": "512Mi"}})
World = Callable[[TrainingJob], list[Manifest]]


def three(change: Callable[[Manifest], Manifest], index: int = 1) -> list[Manifest]:
    """Three running workers, one of them changed."""
    pods = [running(pod(JOB, number)) for number in range(3)]
    pods[index] = change(pods[index])
    return pods


def all_ended(*codes: int) -> list[Manifest]:
    return [ended(pod(JOB, index), code) for index, code in enumerate(codes)]


def failed_by(reason: str, message: str = "") -> Callable[[Manifest], Manifest]:
    def change(item: Manifest) -> Manifest:
        item["status"] |= {"phase": "Failed", "reason": reason, "message": message, "containerStatuses": []}
        return conditions(item, Ready="False")

    return change


def disrupted(reason: str) -> Callable[[Manifest], Manifest]:
    return lambda item: conditions(terminating(item), DisruptionTarget=("True", reason, ""))


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param([], id="no pod yet"),
        pytest.param([pod(JOB, 0)], id="one of three made, the others late in the cache"),
        pytest.param([pod(JOB, index) for index in range(3)], id="pending"),
        pytest.param([running(pod(JOB, index)) for index in range(3)], id="running"),
        pytest.param(three(lambda item: ended(item, 0)), id="one finished before the others"),
        pytest.param(three(lambda item: waiting(item, "ImagePullBackOff")), id="image cannot be pulled"),
        pytest.param(three(lambda item: terminating(ended(item, 0, at=5), asked=1)), id="a finished pod is deleted"),
        pytest.param(three(lambda item: ended(item, 1, at=1)), id="the others' ends are not told yet"),
    ],
)
def test_an_attempt_goes_on(pods: list[Manifest]) -> None:
    assert judge(run_of(JOB, pods)) is None


@pytest.mark.parametrize(
    ("pods", "outcome", "reason", "says"),
    [
        pytest.param(all_ended(0, 0, 0), Outcome.SUCCEEDED, "Succeeded", "all 3 workers finished", id="all finished"),
        pytest.param(all_ended(1, 1, 1), Outcome.OWN_FAULT, "WorkerFailed", "digits-worker-0 ended", id="all failed"),
        pytest.param(all_ended(0, 1, 0), Outcome.OWN_FAULT, "WorkerFailed", "digits-worker-1 ended", id="one failed"),
        pytest.param(
            three(lambda item: ended(item, 1, at=4)), Outcome.OWN_FAULT, "WorkerFailed", "exit code 1",
            id="failed while the others hang",
        ),
        pytest.param(
            three(lambda item: ended(item, 1, at=4, message="step 7\nValueError: bad loss\n")),
            Outcome.OWN_FAULT, "WorkerFailed", "ValueError: bad loss", id="says the last line of its log",
        ),
        pytest.param(
            three(lambda item: ended(item, 1, at=-3600)), Outcome.OWN_FAULT, "WorkerFailed", "exit code 1",
            id="node's clock an hour ahead",
        ),
        pytest.param(
            three(lambda item: ended(item, 137, reason="OOMKilled", at=4)), Outcome.OWN_FAULT, "OutOfMemory",
            "raise resources.limits.memory, which is 512Mi", id="out of memory",
        ),
        pytest.param(
            three(lambda item: ended(item, 137, at=4)), Outcome.OWN_FAULT, "WorkerFailed",
            "perhaps by the kernel for want of memory", id="killed, and containerd did not say why",
        ),
        pytest.param(
            three(lambda item: ended(item, 128, container="clone", message="fatal: unable to access", at=4)),
            Outcome.OWN_FAULT, "ScriptNotCloned", "fatal: unable to access", id="git unreachable",
        ),
        pytest.param(
            three(lambda item: ended(item, 79, message="error: evaluation: accuracy is 0.91, at least 0.95 is")),
            Outcome.FAILED, "GateNotMet", "accuracy is 0.91, at least 0.95", id="model not good enough",
        ),
        pytest.param(
            three(lambda item: ended(item, 78, message="dataset.labelColumn: no column 'y'")), Outcome.FAILED,
            "InvalidConfiguration", "no column 'y'", id="configuration",
        ),
        pytest.param(
            three(lambda item: ended(item, 78, container="clone", message="x has no file train.py", at=0)),
            Outcome.FAILED, "InvalidConfiguration", "no file train.py", id="git without the file, at once",
        ),
        pytest.param(
            three(lambda item: ended(item, 128, reason="StartError", message='"pyton": executable file not found')),
            Outcome.FAILED, "CommandNotFound", "check command and image", id="command misspelt",
        ),
        pytest.param(
            three(lambda item: ended(item, 128, reason="StartError", message="context deadline exceeded")),
            Outcome.OWN_FAULT, "WorkerFailed", "deadline", id="a start that may work next time",
        ),
        pytest.param(all_ended(143, 143, 143), Outcome.LOST, "WorkerInterrupted", "SIGTERM", id="all told to stop"),
        pytest.param(three(terminating), Outcome.LOST, "WorkerDeleted", "was deleted", id="deleted"),
        pytest.param(
            three(lambda item: terminating(ended(item, 143, at=1), asked=5)), Outcome.LOST, "WorkerDeleted",
            "was deleted", id="deleted, and ended on SIGTERM",
        ),
        pytest.param(
            three(lambda item: terminating(ended(item, 1, at=60), asked=5)), Outcome.OWN_FAULT, "WorkerFailed",
            "exit code 1", id="failed, then deleted",
        ),
        pytest.param(
            three(lambda item: terminating(ended(item, 78, at=60), asked=5)), Outcome.FAILED, "InvalidConfiguration",
            "cannot work", id="configuration, then deleted",
        ),
        pytest.param(
            three(disrupted("EvictionByEvictionAPI")), Outcome.LOST, "WorkerEvicted", "drain", id="node drained"
        ),
        pytest.param(
            three(disrupted("PreemptionByScheduler")), Outcome.LOST, "WorkerPreempted", "priority", id="preempted"
        ),
        pytest.param(three(disrupted("DeletionByTaintManager")), Outcome.LOST, "NodeLost", "taint", id="tainted node"),
        pytest.param(
            three(disrupted("DeletionByPodGC")), Outcome.LOST, "NodeLost", "no longer exists", id="node deleted"
        ),
        pytest.param(
            three(lambda item: conditions(ended(item, 137), DisruptionTarget=("True", "TerminationByKubelet", ""))),
            Outcome.LOST, "WorkerEvicted", "by its node", id="node shut down",
        ),
        pytest.param(
            three(failed_by("Evicted", "The node was low on resource: memory.")), Outcome.LOST, "WorkerEvicted",
            "low on resource: memory", id="node pressure",
        ),
        pytest.param(
            three(failed_by("UnexpectedAdmissionError", "no GPU left")), Outcome.LOST, "WorkerRejected", "no GPU left",
            id="refused by the kubelet",
        ),
    ],
)  # fmt: skip
def test_an_attempt_ends(pods: list[Manifest], outcome: Outcome, reason: str, says: str) -> None:
    verdict = judge(run_of(JOB, pods))
    assert verdict is not None
    assert (verdict.outcome, verdict.reason) == (outcome, reason)
    assert says in verdict.message


@pytest.mark.parametrize(
    ("codes", "at", "reasons", "cause"),
    [
        pytest.param((1, 1, 1), (5, 9, 7), ("", "", ""), 1, id="the earliest"),
        pytest.param((143, 1, 1), (9, 5, 4), ("", "", ""), 1, id="not one that was asked to stop"),
        pytest.param((1, 1, 137), (9, 8, 4), ("", "", "OOMKilled"), 2, id="out of memory, whatever the clocks say"),
        pytest.param((1, 139, 1), (5, 5, 5), ("", "", ""), 1, id="a crash within the same second"),
    ],
)
def test_the_root_cause_is_named(
    codes: tuple[int, ...], at: tuple[float, ...], reasons: tuple[str, ...], cause: int
) -> None:
    pods = [
        ended(pod(JOB, index), code, at=when, reason=reason)
        for index, (code, when, reason) in enumerate(zip(codes, at, reasons, strict=True))
    ]
    verdict = judge(run_of(JOB, pods))
    assert verdict is not None
    assert f"digits-worker-{cause} " in verdict.message
    assert "failed too" in verdict.message


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.244.1.7]:40331",
        "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms",
        "torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error",
        "BrokenPipeError: [Errno 32] Broken pipe",
    ],
)
def test_who_only_lost_a_peer_is_not_the_cause(said: str) -> None:
    """Words of gloo, the rendezvous store and NCCL, from reports of their users."""
    pods = [
        ended(pod(JOB, 0), 1, at=9, message=said),
        ended(pod(JOB, 1), 1, at=8, message="ValueError: boom"),
        ended(pod(JOB, 2), 1, at=9, message=said),
    ]
    verdict = judge(run_of(JOB, pods))
    assert verdict is not None
    assert "digits-worker-1 ended with exit code 1: ValueError: boom" in verdict.message


def test_peers_that_fail_because_a_worker_was_deleted_cost_no_restart() -> None:
    pods = [ended(pod(JOB, 0), 1), terminating(running(pod(JOB, 1))), ended(pod(JOB, 2), 1)]
    verdict = judge(run_of(JOB, pods))
    assert verdict is not None
    assert verdict.outcome is Outcome.LOST


def test_a_worker_that_vanished_after_all_were_seen_is_lost_and_one_never_seen_is_late() -> None:
    seen = job(
        image="team/trainer:1",
        status={
            "attempt": 1,
            "conditions": [
                {"type": "Scheduled", "status": "True", "reason": "X", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            ],
        },
    )
    two = [running(pod(JOB, 0)), ended(pod(JOB, 2), 1)]
    verdict = judge(run_of(seen, two))
    assert verdict is not None
    assert (verdict.outcome, verdict.reason) == (Outcome.LOST, "WorkerDeleted")
    assert "digits-worker-1 is gone" in verdict.message
    assert judge(run_of(job(image="team/trainer:1"), two[:1])) is None


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        pytest.param(node("node-b", ready="True"), False, id="ready"),
        pytest.param(node("node-b", ready="Unknown", since=0), True, id="unknown: the grace period is already over"),
        pytest.param(node("node-b", ready="False", since=5), False, id="not ready for a moment"),
        pytest.param(node("node-b", ready="False", since=31), True, id="not ready for long"),
        pytest.param(
            node("node-b", taints=[{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]), True,
            id="out of service",
        ),
    ],
)  # fmt: skip
def test_a_node(broken: Manifest, lost: bool) -> None:
    pods = [running(pod(JOB, index)) for index in range(3)]
    verdict = judge(run_of(JOB, pods, [NODES[0], broken, NODES[2]]))
    assert (verdict is not None) == lost
    if verdict is not None:
        assert (verdict.outcome, verdict.reason) == (Outcome.LOST, "NodeLost")
        assert "node-b" in verdict.message


def bound(item: Manifest, seconds: float) -> Manifest:
    """The pod was bound to its node this long ago."""
    (at,) = (c for c in item["status"]["conditions"] if c["type"] == "PodScheduled")
    at["lastTransitionTime"] = ago(seconds)
    return item


def test_a_node_that_is_not_in_the_cache_counts_as_lost_only_when_its_pod_is_unwell() -> None:
    pods = [bound(running(pod(JOB, index)), 300) for index in range(3)]
    here = [NODES[0], NODES[2]]
    assert judge(run_of(JOB, pods, here)) is None
    conditions(pods[1], Ready="False")
    verdict = judge(run_of(JOB, pods, here))
    assert verdict is not None
    assert verdict.reason == "NodeLost"


def test_a_worker_that_starts_on_a_node_that_the_cache_has_not_seen_yet_is_left_alone() -> None:
    """A node that was just added, while the watch of nodes stalls for up to `SILENCE`."""
    assert timedelta(seconds=SILENCE) < NODE_KNOWN_AFTER
    here = [NODES[0], NODES[2]]
    pods = [running(pod(JOB, 0)), waiting(pod(JOB, 1), "ContainerCreating"), running(pod(JOB, 2))]
    conditions(pods[1], Ready="False")
    for age, lost in ((1, False), (SILENCE, False), (NODE_KNOWN_AFTER.total_seconds(), True)):
        bound(pods[1], age)
        assert (judge(run_of(JOB, pods, here)) is not None) == lost, age
    # Whoever deletes it knows better, as the garbage collector of pods does.
    bound(pods[1], 50)
    verdict = judge(run_of(JOB, [pods[0], terminating(pods[1]), pods[2]], here))
    assert verdict is not None
    assert verdict.outcome == Outcome.LOST


def test_a_finished_worker_does_not_mind_its_node() -> None:
    pods = [running(pod(JOB, 0)), ended(pod(JOB, 1), 0), running(pod(JOB, 2))]
    assert judge(run_of(JOB, pods, [NODES[0], node("node-b", ready="Unknown"), NODES[2]])) is None


def test_a_pod_that_waits_on_a_lost_node_is_replaced() -> None:
    pods = [running(pod(JOB, 0)), scheduled(pod(JOB, 1)), running(pod(JOB, 2))]
    verdict = judge(run_of(JOB, pods, [NODES[0], node("node-b", ready="Unknown"), NODES[2]]))
    assert verdict is not None
    assert verdict.reason == "NodeLost"


def test_the_verdict_waits_three_seconds_for_the_other_ends() -> None:
    pods = three(lambda item: ended(item, 1, at=1))
    assert settling(run_of(JOB, pods)) == timedelta(seconds=2)
    assert settling(run_of(JOB, all_ended(1, 1, 1))) is None
