"""What a whole namespace shares comes back when somebody deletes it, and costs nothing while it is there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from controllers.inferenceservice.controller import InferenceServiceController
from controllers.inferenceservice.plan import LOOK_FOR_SECRET
from controllers.runtime.apply import REAPPLY_AFTER, RESTORE_AFTER, Applier
from controllers.runtime.cache import CacheSet, WatchCache
from controllers.runtime.manager import Manager
from controllers.runtime.metrics import Metrics
from controllers.runtime.namespace import (
    NAMESPACE_TYPES,
    STORAGE_SECRET,
    WORKER_ACCOUNT,
    WORKER_CLUSTER_ROLE,
    namespace_objects,
)
from controllers.runtime.objects import MANAGED_LABELS, ROLE_BINDING, SERVICE_ACCOUNT, Key, Manifest
from controllers.runtime.plan import Apply
from controllers.runtime.podstate import lacks_secret
from controllers.runtime.settings import Settings
from controllers.trainingjob.controller import TrainingJobController
from headrace.api import TrainingJob
from tests.unit.inferenceservice import factory as serving
from tests.unit.trainingjob.worlds import job, pod, running, waiting
from tests.unit.trainingjob.worlds import planned as plan_of_job

SETTINGS = Settings()
OWNER: Manifest = {
    "apiVersion": "headrace.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "digits", "namespace": "team", "uid": "u-1"},
}


class Api:
    """Keeps what it is sent, with growing resourceVersions."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> Manifest:
        self.sent.append((method, path.rpartition("/namespaces/team/")[2]))
        if method == "DELETE":
            return {"kind": "Status"}
        metadata = {**body["metadata"], "uid": f"u-{len(self.sent)}", "resourceVersion": str(100 + len(self.sent))}
        return {**body, "metadata": metadata}


class Fixture:
    """An applier with its API, caches of the shared types, and a clock that stands still."""

    def __init__(self) -> None:
        self.api = Api()
        self.now = 0.0
        watched = (SERVICE_ACCOUNT, ROLE_BINDING)
        self.caches = CacheSet(WatchCache(self.api, type_) for type_ in watched)  # type: ignore[arg-type]
        self.applier = Applier(self.api, self.caches, clock=lambda: self.now)  # type: ignore[arg-type]

    async def apply(self, *, lost: bool = False) -> list[tuple[str, str]]:
        """The requests that the shared objects cost now."""
        self.api.sent.clear()
        await self.applier.apply(OWNER, namespace_objects("team", SETTINGS, lost=lost))
        return list(self.api.sent)


SECRET_WRITE = ("PATCH", f"secrets/{STORAGE_SECRET}")


async def test_a_secret_that_pods_wait_for_is_written_again_once_in_a_while() -> None:
    fixture = Fixture()
    assert len(await fixture.apply()) == 3
    fixture.now += REAPPLY_AFTER / 2
    assert await fixture.apply() == []
    assert await fixture.apply(lost=True) == [SECRET_WRITE]
    # The pods say so until their kubelets have looked again; there may be thousands.
    assert await fixture.apply(lost=True) == []
    fixture.now += RESTORE_AFTER
    assert await fixture.apply(lost=True) == [SECRET_WRITE]


def binding(role: str) -> Manifest:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {
            "name": WORKER_ACCOUNT,
            "namespace": "team",
            "labels": dict(MANAGED_LABELS),
            "uid": "old",
            "resourceVersion": "7",
        },
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": WORKER_ACCOUNT, "namespace": "team"}],
    }


@pytest.mark.parametrize(
    ("role", "requests"), [("mill-headrace-worker", ["DELETE", "PATCH"]), (WORKER_CLUSTER_ROLE, ["PATCH"])]
)
async def test_a_binding_that_another_release_left_is_made_again(role: str, requests: list[str]) -> None:
    fixture = Fixture()
    fixture.caches.store(ROLE_BINDING).put(binding(role))
    sent = [method for method, path in await fixture.apply() if path == f"rolebindings/{WORKER_ACCOUNT}"]
    assert sent == requests
    found = fixture.caches.get(ROLE_BINDING, Key("team", WORKER_ACCOUNT))
    assert found is not None
    assert found["roleRef"]["name"] == WORKER_CLUSTER_ROLE
    assert await fixture.apply() == []


def shared(applies: Any) -> dict[str, Apply]:
    return {item.type.kind: item for item in applies if item.type in NAMESPACE_TYPES}


# The kubelet's words, as in a v1.36 cluster.
LACKS = ("CreateContainerConfigError", f'secret "{STORAGE_SECRET}" not found')


def test_a_job_whose_worker_waits_for_the_secret_writes_it_again() -> None:
    well = [running(pod(job(), index)) for index in range(3)]
    # Those that run report with the account's rights; while nothing is wrong this costs no request.
    assert shared(plan_of_job(job(), well).applies).keys() == {"ServiceAccount", "RoleBinding"}
    waits = [*well[:2], waiting(pod(job(), 2), *LACKS)]
    assert shared(plan_of_job(job(), waits).applies)["Secret"].lost
    assert not shared(plan_of_job(job(), []).applies)["Secret"].lost
    own = job(storage={"uri": "s3://a/b", "secretRef": {"name": STORAGE_SECRET}})
    assert "Secret" not in shared(plan_of_job(own, waits).applies), "that one is the user's to make"


def test_a_service_whose_pod_waits_for_the_secret_writes_it_again_and_looks_again() -> None:
    of = serving.service()
    cluster = serving.well(of)
    well = serving.plan(of, cluster)
    assert not shared(well.applies)["Secret"].lost
    (status,) = serving.pods(cluster, "predictor")[0]["status"]["containerStatuses"]
    status |= {"ready": False, "state": serving.waiting(*LACKS)}
    plan = serving.plan(of, cluster)
    assert shared(plan.applies)["Secret"].lost
    assert plan.requeue_after is not None
    assert plan.requeue_after <= LOOK_FOR_SECRET


@pytest.mark.parametrize(
    ("reason", "message", "lacks"),
    [
        (*LACKS, True),
        ("CreateContainerConfigError", 'secret "mine" not found', False),
        ("CreateContainerConfigError", f'configmap "{STORAGE_SECRET}" not found', False),
        ("CreateContainerConfigError", f"couldn't find key a in Secret team/{STORAGE_SECRET}", False),
        ("ContainerCreating", "", False),
    ],
)
def test_only_the_secret_s_absence_counts(reason: str, message: str, lacks: bool) -> None:
    assert lacks_secret(waiting(pod(job(), 0), reason, message), STORAGE_SECRET) == lacks


async def test_whoever_is_in_the_namespace_is_looked_at_when_the_account_goes() -> None:
    controllers = [TrainingJobController(SETTINGS), InferenceServiceController(SETTINGS)]
    manager = Manager(Api(), controllers, Metrics(CollectorRegistry()))  # type: ignore[arg-type]
    queue = manager.queue(TrainingJob)
    for namespace in ("team", "other"):
        manifest = job().model_dump(by_alias=True, mode="json", exclude_none=True)
        manifest["metadata"] |= {"namespace": namespace, "uid": namespace, "resourceVersion": "1"}
        manager.store(TrainingJob).put(manifest)
        queue.done(await queue.get())
    accounts = manager.caches.store(SERVICE_ACCOUNT)
    metadata = {"name": WORKER_ACCOUNT, "namespace": "team", "uid": "sa", "resourceVersion": "5"}
    accounts.put({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    accounts.deleted({"metadata": metadata})
    assert await asyncio.wait_for(queue.get(), 5) == Key("team", "digits")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 3 * manager.options.batch)
