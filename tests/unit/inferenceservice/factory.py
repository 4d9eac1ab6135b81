"""Services, pods and Deployments as the API server would show them, for the tests of rules and plans."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from controllers.inferenceservice import builders
from controllers.inferenceservice.canary import merged
from controllers.inferenceservice.controller import InferenceServiceController
from controllers.inferenceservice.observed import CHILDREN
from controllers.runtime.objects import COMPONENT, DEPLOYMENT, OWNER_UID, POD, REPORT, Key, Manifest, ObjectType
from controllers.runtime.plan import Plan
from controllers.runtime.settings import Settings
from controllers.runtime.workload import TEMPLATE_HASH, Workload, deployment, template_hash
from headrace.api import InferenceService
from headrace.api.inferenceservice import InferenceServiceStatus

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
LONG_AGO = "2026-11-25T10:00:00Z"
SETTINGS = Settings()
NAME, NAMESPACE, UID = "digits", "demo", "uid-1"

STATIC: Manifest = {
    "name": "static",
    "static": {"outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [-1]}]},
}
SMALL: Manifest = {"name": "small", "model": {"storageUri": "s3://models/small"}, "timeout": "500ms"}


def service(
    *,
    predictor: Manifest | None = None,
    router: Manifest | None = None,
    fallback: Sequence[Manifest] = (SMALL, STATIC),
    status: Manifest | None = None,
    generation: int = 1,
    request_log: Manifest | None = None,
) -> InferenceService:
    """A service as it comes from the API server."""
    return InferenceService.model_validate(
        {
            "apiVersion": "headrace.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": UID, "generation": generation},
            "spec": {
                "predictor": {"model": {"storageUri": "s3://models/large"}} | (predictor or {}),
                "fallback": list(fallback),
                "router": router or {},
                "requestLog": request_log,
            },
            "status": status,
        }
    )


def workloads(of: InferenceService, predictors: int | None = None) -> dict[str, Workload]:
    """The router's and the predictor's Workload of a service, and the canary's where it has one."""
    chain = builders.chain_config_map(of, SETTINGS)
    beside = {}
    if of.spec.canary is not None:
        spec = of.spec.model_copy(update={"predictor": merged(of.spec.predictor, of.spec.canary)})
        beside["canary"] = builders.predictor(of.model_copy(update={"spec": spec}), SETTINGS, 1, "canary")
    return {
        **beside,
        "router": builders.router(of, SETTINGS, chain["metadata"]["name"]),
        "predictor": builders.predictor(of, SETTINGS, predictors or of.spec.predictor.min_replicas),
    }


class Cluster:
    """What the watch caches hold; fulfils `controllers.runtime.controller.Caches`."""

    def __init__(self) -> None:
        self.objects: dict[tuple[ObjectType, Key], Manifest] = {}

    def patience(self) -> timedelta:
        return timedelta(seconds=3)

    def owned(self, type_: ObjectType, namespace: str, owner_uid: str) -> Sequence[Manifest]:
        objects = sorted(self.objects.items(), key=_order)
        found = (item for (of_type, key), item in objects if (of_type, key.namespace) == (type_, namespace))
        return [item for item in found if _owner(item) == owner_uid]

    def get(self, type_: ObjectType, key: Key) -> Manifest | None:
        return self.objects.get((type_, key))

    def all(self, type_: ObjectType) -> Sequence[Manifest]:
        return [item for (of_type, _), item in self.objects.items() if of_type == type_]

    def put(self, type_: ObjectType, manifest: Manifest) -> Manifest:
        """An object of the service's."""
        made: Manifest = json.loads(json.dumps(manifest))
        made["metadata"].setdefault("uid", f"uid-of-{type_.kind}-{made['metadata']['name']}")
        if type_ != POD:
            made["metadata"]["ownerReferences"] = [{"uid": UID, "controller": True}]
        self.objects[type_, Key(NAMESPACE, made["metadata"]["name"])] = made
        return made

    def drop(self, type_: ObjectType, name: str) -> None:
        """Take an object away."""
        del self.objects[type_, Key(NAMESPACE, name)]

    def take(self, plan: Plan) -> None:
        """Do what the plan says to the service's own objects; pods are the test's to make."""
        for delete in plan.deletes:
            del self.objects[delete.type, delete.key]
        for apply in plan.applies:
            if apply.type in CHILDREN:
                before = self.objects.get((apply.type, Key(NAMESPACE, apply.manifest["metadata"]["name"]))) or {}
                self.put(apply.type, before | apply.manifest)

    def deploy(self, of: InferenceService, component: str, **pods: Any) -> None:
        """A finished Deployment of the service's present spec, with as many pods as it asks for."""
        workload = workloads(of)[component]
        self.put(DEPLOYMENT, deployment(workload))
        for index in range(workload.replicas):
            self.put(POD, pod(workload, f"{workload.name}-{index}", **pods))


def _order(item: tuple[tuple[ObjectType, Key], Manifest]) -> tuple[str, Key]:
    return item[0][0].kind, item[0][1]


def _owner(manifest: Manifest) -> str | None:
    labels = manifest["metadata"].get("labels") or {}
    if OWNER_UID in labels:
        return str(labels[OWNER_UID])
    references: list[dict[str, str]] = manifest["metadata"].get("ownerReferences") or [{}]
    return references[0].get("uid")


def pod(
    workload: Workload,
    name: str,
    *,
    ready: bool = True,
    since: str = LONG_AGO,
    container: Manifest | None = None,
    conditions: Sequence[Manifest] = (),
    report: Any = None,
    revision: str = "",
    deleted: bool = False,
) -> Manifest:
    """A running pod of a workload."""
    template = deployment(workload)["spec"]["template"]
    annotations = {TEMPLATE_HASH: revision or template_hash(template)}
    if report is not None:
        annotations[REPORT] = report if isinstance(report, str) else json.dumps(report)
    status: Manifest = {"name": workload.component, "ready": ready, "restartCount": 0, "image": workload.image}
    status["state"] = {"running": {"startedAt": since}}
    ready_condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": since}
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            **({"deletionTimestamp": LONG_AGO} if deleted else {}),
        },
        "spec": {"nodeName": "node-a"},
        "status": {
            "phase": "Running",
            "conditions": [ready_condition, *conditions],
            "containerStatuses": [status | (container or {})],
        },
    }


def report(answering: str, **steps: str | tuple[str, str]) -> Manifest:
    """A router's report: steps by name, each a state or a state and a reason."""
    listed = [(name, state if isinstance(state, tuple) else (state, "")) for name, state in steps.items()]
    return {
        "answering": answering,
        "steps": [{"name": name, "state": state, "reason": reason} for name, (state, reason) in listed],
    }


WELL = report("predictor", predictor="Answering", small="Standby", static="Standby")
DEGRADED = report("small", predictor=("NotReady", "no replica is ready"), small="Answering", static="Standby")


def terminated(code: int, message: str = "", **more: Any) -> Manifest:
    """A container state."""
    return {"terminated": {"exitCode": code, "message": message, **more}}


def waiting(reason: str, message: str = "") -> Manifest:
    """A container state."""
    return {"waiting": {"reason": reason, "message": message}}


def running_since(seconds: float) -> Manifest:
    """A container state."""
    return {"running": {"startedAt": (NOW - timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")}}


def well(of: InferenceService) -> Cluster:
    """A cluster in which everything of the service runs and the primary answers."""
    cluster = Cluster()
    cluster.take(plan(of, cluster))
    cluster.deploy(of, "predictor")
    cluster.deploy(of, "router", report=WELL)
    return cluster


def plan(of: InferenceService, cluster: Cluster, now: datetime = NOW) -> Plan:
    """What the controller plans."""
    controller = InferenceServiceController(SETTINGS)
    return controller.plan(of, controller.gather(of, cluster), now)


def again(of: InferenceService, last: Plan) -> InferenceService:
    """The service with the status that its last plan gave it."""
    assert last.status is not None
    return of.model_copy(update={"status": InferenceServiceStatus.model_validate(last.status)})


def condition(of: Plan, type_: str = "Ready") -> Manifest:
    """One condition of the plan's status."""
    assert of.status is not None
    return next(item for item in of.status["conditions"] if item["type"] == type_)


def pods(cluster: Cluster, component: str) -> list[Manifest]:
    """Pods of one part."""
    return [item for item in cluster.all(POD) if item["metadata"]["labels"][COMPONENT] == component]
