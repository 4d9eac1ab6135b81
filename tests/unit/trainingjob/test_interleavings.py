"""Random interleavings of what happens to a job: pods that come up, fail or are deleted, caches that lag, an operator
that stops between two of its writes and is replaced. Whatever the order: two attempts never mix, a restart is counted
once, and the job ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controllers.runtime.objects import POD, Manifest
from controllers.trainingjob.failure import SETTLING
from controllers.trainingjob.names import ATTEMPT
from controllers.trainingjob.observed import Observed
from controllers.trainingjob.plan import LONGEST_BACKOFF, plan
from controllers.trainingjob.run import first_round_of
from tests.unit.trainingjob.worlds import NODES, NOW, SETTINGS, conditions, job, running, with_status

WORKERS = 3
MAX_RESTARTS = 4


class Cluster:
    """The API server's truth, the caches of one operator process behind it, and a kubelet per pod."""

    def __init__(self, **spec: Any) -> None:
        self.job = job(numWorkers=WORKERS, restartPolicy={"maxRestarts": MAX_RESTARTS}, **spec)
        self.pods: dict[str, Manifest] = {}
        self.cached_pods: dict[str, Manifest] = {}
        self.cached_status: Any = None
        self.status: Any = None
        self.now = NOW
        self.uids = 0
        self.failures: set[int] = set()
        """Attempts in which a worker failed by itself, as the kubelet saw it first."""
        self.losses: set[int] = set()
        """Attempts that lost a worker."""
        self.created: list[tuple[str, int]] = []

    def refresh(self, *, pods: bool = True, status: bool = True) -> None:
        if pods:
            self.cached_pods = {name: snapshot(item) for name, item in self.pods.items()}
        if status:
            self.cached_status = copy.deepcopy(self.status)

    def reconcile(self, writes: int = 10_000) -> None:
        """One reconcile on what the caches hold; the process dies after so many writes, its successor lists."""
        view = Observed(self.cached_pods, {item["metadata"]["name"]: item for item in NODES}, NODES)
        todo = plan(with_status(self.job, self.cached_status), view, self.now, SETTINGS)
        steps: list[Callable[[], None]] = [partial(self.delete, item.key.name, item.uid) for item in todo.deletes]
        steps += [partial(self.create, item.manifest) for item in todo.applies if item.type == POD]
        if todo.status is not None:
            steps.append(partial(self.write_status, todo.status))
        for step in steps[:writes]:
            step()
        if writes < len(steps):
            self.refresh()

    def delete(self, name: str, uid: str) -> None:
        found = self.pods.get(name)
        if found is not None and found["metadata"]["uid"] == uid:
            found["metadata"] |= {"deletionTimestamp": self._time(5), "deletionGracePeriodSeconds": 5}

    def create(self, manifest: Manifest) -> None:
        name = manifest["metadata"]["name"]
        if name in self.pods:
            return  # AlreadyExists
        self.uids += 1
        made = snapshot(manifest)
        made["metadata"] |= {"uid": f"uid-{self.uids}", "creationTimestamp": self._time()}
        made["status"] = {"phase": "Pending", "conditions": []}
        self.pods[name] = made
        self.created.append((name, attempt(made)))

    def write_status(self, status: Any) -> None:
        self.status = copy.deepcopy(status)

    def _time(self, after: float = 0) -> str:
        return (self.now + timedelta(seconds=after)).isoformat()

    def end(self, item: Manifest, code: int) -> None:
        """The process of a pod ends."""
        item["status"] |= {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [
                {"name": "worker", "state": {"terminated": {"exitCode": code, "finishedAt": self._time()}}}
            ],
        }
        conditions(item, Ready="False")

    def ended(self) -> str | None:
        for item in (self.status or {}).get("conditions", []):
            if item["type"] in ("Succeeded", "Failed") and item["status"] == "True":
                return str(item["type"])
        return None


def snapshot(item: Manifest) -> Manifest:
    """A copy as deep as the kubelet and the API server change pods here."""
    return {
        **item,
        "metadata": dict(item["metadata"]),
        "spec": dict(item["spec"]),
        "status": copy.deepcopy(item.get("status", {})),
    }


def attempt(item: Manifest) -> int:
    return int(item["metadata"]["labels"][ATTEMPT])


class Interleavings(RuleBasedStateMachine):
    """Each rule is one thing that may happen next."""

    spec: ClassVar[dict[str, Any]] = {"image": "team/trainer:1"}

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster(**self.spec)

    def _pick(self, data: st.DataObject, *phases: str) -> Manifest | None:
        names = [name for name, item in sorted(self.cluster.pods.items()) if item["status"]["phase"] in phases]
        return self.cluster.pods[data.draw(st.sampled_from(names))] if names else None

    def _under_way(self, item: Manifest) -> int:
        """The attempt that a pod's end is the end of: a later one than its own where another pod was replaced."""
        peers = [other for other in self.cluster.pods.values() if attempt(other) == attempt(item)]
        return max([attempt(item), *map(first_round_of, peers)])

    @rule()
    def the_operator_looks(self) -> None:
        self.cluster.refresh()
        self.cluster.reconcile()

    @rule()
    def the_operator_looks_at_old_pods(self) -> None:
        self.cluster.refresh(pods=False)
        self.cluster.reconcile()

    @rule(writes=st.integers(0, 4))
    def the_operator_dies_between_two_writes(self, writes: int) -> None:
        self.cluster.refresh()
        self.cluster.reconcile(writes)

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.cluster.now += timedelta(seconds=seconds)

    @rule(some=st.integers(1, WORKERS))
    def pods_come_up(self, some: int) -> None:
        pending = [item for _, item in sorted(self.cluster.pods.items()) if item["status"]["phase"] == "Pending"]
        for item in pending[:some]:
            if not item["metadata"].get("deletionTimestamp"):
                running(item)

    @rule()
    def an_attempt_starts(self) -> None:
        """The quiet way to three running workers, so that what follows meets a run under way."""
        for _ in range(6):
            self.deleted_pods_go(WORKERS)
            self.the_operator_looks()
            self.pods_come_up(WORKERS)
            self.time_passes(11)

    @rule(data=st.data(), code=st.sampled_from([0, 0, 1, 137, 143]))
    def a_worker_ends(self, data: st.DataObject, code: int) -> None:
        item = self._pick(data, "Running")
        if item is None:
            return
        if code and not item["metadata"].get("deletionTimestamp"):
            (self.cluster.losses if code == 143 else self.cluster.failures).add(self._under_way(item))
        self.cluster.end(item, code)

    @rule(data=st.data(), force=st.booleans())
    def somebody_deletes_a_pod(self, data: st.DataObject, force: bool) -> None:
        item = self._pick(data, "Pending", "Running")
        if item is None:
            return
        self.cluster.losses.add(self._under_way(item))
        if force:
            del self.cluster.pods[item["metadata"]["name"]]
        else:
            self.cluster.delete(item["metadata"]["name"], item["metadata"]["uid"])

    @rule(some=st.integers(1, WORKERS))
    def deleted_pods_go(self, some: int) -> None:
        pods = sorted(self.cluster.pods.items())
        for name in [name for name, item in pods if item["metadata"].get("deletionTimestamp")][:some]:
            del self.cluster.pods[name]

    @invariant()
    def no_rank_goes_back_to_an_earlier_attempt(self) -> None:
        latest: dict[str, int] = {}
        for name, number in self.cluster.created:
            assert number >= latest.get(name, 0)
            latest[name] = number

    @invariant()
    def a_new_attempt_starts_when_the_one_before_is_gone(self) -> None:
        attempts = {attempt(item) for item in self.cluster.pods.values()}
        assert len(attempts) <= 1

    @invariant()
    def a_restart_counts_once_and_only_for_a_failure(self) -> None:
        restarts = (self.cluster.status or {}).get("restarts", 0)
        assert restarts <= len(self.cluster.failures)
        assert restarts <= MAX_RESTARTS
        # Failed without a loss beside it: nothing else can have been the cause.
        current = (self.cluster.status or {}).get("attempt", 0)
        pure = {number for number in self.cluster.failures - self.cluster.losses if number < current}
        assert restarts >= len(pure)

    @invariant()
    def attempts_are_ends_plus_one(self) -> None:
        ends = len(self.cluster.failures | self.cluster.losses)
        assert (self.cluster.status or {}).get("attempt", 0) <= 1 + ends

    def teardown(self) -> None:
        """Left alone, every job ends: pods come up and finish, deleted ones go."""
        cluster = self.cluster
        for _ in range(400):
            cluster.refresh()
            cluster.reconcile()
            if cluster.ended():
                break
            cluster.now += max(SETTLING, LONGEST_BACKOFF) / 20
            for name, item in sorted(cluster.pods.items()):
                if item["metadata"].get("deletionTimestamp"):
                    del cluster.pods[name]
                elif item["status"]["phase"] == "Pending":
                    running(item)
                elif item["status"]["phase"] == "Running":
                    cluster.end(item, 0)
        assert cluster.ended() in ("Succeeded", "Failed")
        if cluster.ended() == "Failed":
            assert len(cluster.failures) > MAX_RESTARTS or 78 in cluster.failures
        final = copy.deepcopy(cluster.status)
        for _ in range(3):
            cluster.refresh()
            cluster.reconcile()
        assert cluster.status == final


class InterleavingsWithAgents(Interleavings):
    """The same where lost pods are replaced alone."""

    spec: ClassVar[dict[str, Any]] = {}


SETTINGS_OF_TEST = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = SETTINGS_OF_TEST
TestInterleavingsWithAgents = InterleavingsWithAgents.TestCase
TestInterleavingsWithAgents.settings = SETTINGS_OF_TEST


@given(delays=st.lists(st.integers(0, 2), max_size=30))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_job_that_nothing_happens_to_takes_one_attempt_however_the_caches_lag(delays: list[int]) -> None:
    cluster = Cluster()
    for turn in range(60):
        lag = delays[turn] if turn < len(delays) else 0
        cluster.refresh(pods=lag != 1, status=lag != 2)
        cluster.reconcile()
        cluster.now += timedelta(seconds=1)
        for item in cluster.pods.values():
            if item["status"]["phase"] == "Pending":
                running(item)
            elif turn > 40 and item["status"]["phase"] == "Running":
                cluster.end(item, 0)
    assert cluster.ended() == "Succeeded"
    assert (cluster.status["attempt"], cluster.status["restarts"]) == (1, 0)
    assert len(cluster.created) == WORKERS
