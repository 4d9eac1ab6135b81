"""What keeps workers from running, said with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from controllers.runtime.objects import Manifest
from controllers.trainingjob.readiness import look_again, problem
from tests.unit.trainingjob.worlds import conditions, ended, job, pod, run_of, running, scheduled, unscheduled, waiting

JOB = job()
SCRIPT = job(script={"configMap": {"name": "code", "key": "train.py"}})
PULL = 'rpc error: code = NotFound desc = failed to resolve reference "registry.example/team/trainer:1": not found'


def three(change: Callable[[Manifest], Manifest]) -> list[Manifest]:
    return [running(pod(JOB, 0)), change(pod(JOB, 1)), running(pod(JOB, 2))]


def not_yet_finished(item: Manifest) -> Manifest:
    ended(item, 0)["status"]["phase"] = "Running"
    return item


@pytest.mark.parametrize(
    ("reason", "message", "expected", "says"),
    [
        ("ErrImagePull", PULL, "ImagePullFailed", "imagePullSecrets"),
        ("ImagePullBackOff", f'Back-off pulling image "x": ErrImagePull: {PULL}', "ImagePullFailed", "not found"),
        ("ErrImageNeverPull", "Container image is not present", "ImagePullFailed", "not present"),
        ("InvalidImageName", "invalid reference format", "InvalidImageName", "registry/repository:tag"),
        ("CreateContainerConfigError", 'secret "s3" not found', "MissingSecret", "Secret 's3'"),
        ("CreateContainerConfigError", 'configmap "cfg" not found', "MissingConfigMap", "ConfigMap 'cfg'"),
        ("CreateContainerConfigError", "couldn't find key a in Secret team/s3", "MissingSecretKey", "key 'a'"),
        ("CreateContainerConfigError", "couldn't find key a in ConfigMap team/c", "MissingConfigMapKey", "key 'a'"),
        (
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root",
            "ImageRunsAsRoot",
            "numeric USER",
        ),
        ("CreateContainerConfigError", "something else", "ContainerConfigInvalid", "something else"),
        ("CreateContainerError", "no command specified", "ContainerStartFailed", "no command specified"),
    ],
)
def test_a_container_that_cannot_start(reason: str, message: str, expected: str, says: str) -> None:
    found = problem(run_of(JOB, three(lambda item: waiting(item, reason, message))))
    assert found is not None
    assert found.reason == expected
    assert says in found.message
    assert "digits-worker-1" in found.message


def test_a_pull_that_fails_and_its_back_off_say_the_same() -> None:
    failing = problem(run_of(JOB, three(lambda item: waiting(item, "ErrImagePull", PULL))))
    back_off = f'Back-off pulling image "registry.example/team/trainer:1": ErrImagePull: {PULL}'
    assert failing == problem(run_of(JOB, three(lambda item: waiting(item, "ImagePullBackOff", back_off))))


def test_an_init_container_is_looked_at_too() -> None:
    found = problem(run_of(JOB, three(lambda item: waiting(item, "ErrImagePull", PULL, container="clone"))))
    assert found is not None
    assert "container clone" in found.message


def late(of: int) -> Callable[[Manifest], Manifest]:
    """Scheduled `of` seconds ago and still without a sandbox, as when a volume cannot be mounted."""

    def change(item: Manifest) -> Manifest:
        waiting(item, "ContainerCreating")
        conditions(item, PodScheduled="True", PodReadyToStartContainers="False")
        item["status"]["conditions"][0]["lastTransitionTime"] = (
            f"2026-01-01T11:{59 if of <= 60 else 58}:{60 - of % 60}Z"
        )
        return item

    return change


def test_a_script_whose_config_map_is_missing_is_named_when_its_volume_is_late() -> None:
    found = problem(run_of(SCRIPT, three(late(40))))
    assert found is not None
    assert found.reason == "MissingConfigMap"
    assert "ConfigMap 'code' with the key 'train.py'" in found.message
    early = problem(run_of(SCRIPT, three(late(10))))
    assert early is not None
    assert early.reason == "Starting"


def test_without_a_script_it_is_the_sandbox() -> None:
    found = problem(run_of(JOB, three(late(40))))
    assert found is not None
    assert found.reason == "PodSandboxNotReady"


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        pytest.param([], "Starting", id="none made"),
        pytest.param([running(pod(JOB, index)) for index in range(2)], "Starting", id="one to make"),
        pytest.param([pod(JOB, index) for index in range(3)], "Starting", id="pending"),
        pytest.param(three(scheduled), "Starting", id="one pending"),
        pytest.param(three(lambda i: conditions(running(i), Ready="False")), "WorkerNotReady", id="one not ready"),
        pytest.param([running(pod(JOB, index)) for index in range(3)], None, id="running"),
        pytest.param(three(lambda item: ended(item, 0)), None, id="one finished"),
        pytest.param(
            three(not_yet_finished),
            None,
            id="one finished, its pod not yet said so",
        ),
    ],
)
def test_the_summary(pods: list[Manifest], reason: str | None) -> None:
    found = problem(run_of(JOB, pods))
    assert (found.reason if found else None) == reason


def test_several_unschedulable_workers_are_counted() -> None:
    pods = [unscheduled(pod(JOB, index), "0/3 nodes are available: 3 Too many pods.") for index in range(3)]
    found = problem(run_of(JOB, pods))
    assert found is not None
    assert found.message.startswith("3 of 3 workers wait. ")


@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        pytest.param(running, None, id="a run that is well is not looked at"),
        pytest.param(lambda item: ended(item, 0), None, id="finished"),
        pytest.param(
            lambda item: item, 240, id="not yet seen by the scheduler: two hold nodes for five minutes at most"
        ),
        pytest.param(scheduled, 15, id="its node may go before it starts"),
        pytest.param(lambda item: conditions(running(item), Ready="False"), 5, id="its node may have gone"),
        pytest.param(lambda item: unscheduled(item, "no"), 30, id="a node may have come"),
        pytest.param(lambda item: ended(item, 1, at=1), 2, id="the other ends may be told"),
    ],
)
def test_when_to_look_again_without_any_event(change: Callable[[Manifest], Manifest], seconds: int | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert look_again(run_of(JOB, three(change))) == expected
