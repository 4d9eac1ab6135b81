"""A kind made to test the runtime: a Widget owns a ConfigMap (changed in place) and pods (replaced as a group).

Its plan is deliberately easy to fool. It counts attempts in its status: when a pod of the current attempt is missing
although the attempt was started, the whole group is replaced and the count goes up. Reading a cache that lags behind
its own writes would make it count twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar

from pydantic import Field

from controllers.runtime.conditions import Wanted, conditions
from controllers.runtime.controller import Caches, PolicyRule
from controllers.runtime.errors import RetryError, TerminalError, WaitError
from controllers.runtime.objects import CONFIG_MAP, POD, Manifest, ObjectType
from controllers.runtime.plan import Apply, Delete, Event, Plan
from headrace.api.meta import Resource, Status
from headrace.api.schema import KindInfo, Model

GROUP = "test.headrace.dev"


class WidgetSpec(Model):
    """What is wanted."""

    pods: Annotated[int, Field(ge=0, le=10)] = 1
    color: str = "blue"
    fault: str = ""
    """Makes the plan raise: Terminal, Wait, Retry or Bug."""


class WidgetStatus(Status):
    """How it is."""

    attempt: int = 0
    pods: int = 0


class Widget(Resource):
    """The kind."""

    info: ClassVar[KindInfo] = KindInfo("Widget", "widgets", "widget", group=GROUP, version="v1")
    spec: WidgetSpec
    status: WidgetStatus | None = None


WIDGET = ObjectType(Widget.info.api_version, "Widget", "widgets", managed_only=False)

CRD: Manifest = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"widgets.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                # No schema to speak of: what the model refuses must be said by the runtime.
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def widget(name: str, namespace: str = "default", **spec: Any) -> Manifest:
    """A Widget manifest."""
    return {
        "apiVersion": Widget.info.api_version,
        "kind": "Widget",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


class Gadget(Widget):
    """A second kind, which the API server does not serve before a test installs its CRD."""

    info: ClassVar[KindInfo] = KindInfo("Gadget", "gadgets", "gadget", group=GROUP, version="v1")


def gadget_crd() -> Manifest:
    """The CRD of Gadget."""
    spec = CRD["spec"] | {
        "names": {"kind": "Gadget", "plural": "gadgets", "singular": "gadget", "listKind": "GadgetList"}
    }
    return CRD | {"metadata": {"name": f"gadgets.{GROUP}"}, "spec": spec}


@dataclass(frozen=True)
class Observed:
    """The pods, the newest attempt last."""

    pods: Sequence[Manifest]


class WidgetController:
    """Controller[Widget, Observed]."""

    resource = Widget
    owns: Sequence[ObjectType] = (CONFIG_MAP, POD)
    reads: Sequence[ObjectType] = ()
    rules: Sequence[PolicyRule] = ()

    def gather(self, resource: Widget, caches: Caches) -> Observed:
        """The Widget's pods."""
        return Observed(caches.owned(POD, resource.metadata.namespace, resource.metadata.uid))

    def plan(self, resource: Widget, observed: Observed, now: datetime) -> Plan:
        """Replace the group when one of it is lost."""
        _raise(resource.spec.fault)
        name, spec = resource.metadata.name, resource.spec
        status = resource.status or WidgetStatus()
        alive = [pod for pod in observed.pods if not pod["metadata"].get("deletionTimestamp")]
        current = [pod for pod in alive if _attempt(pod) == status.attempt]
        attempt = status.attempt if status.attempt and len(current) >= spec.pods else status.attempt + 1
        events = [Event("Normal", "Started", f"attempt {attempt} starts")] if attempt != status.attempt else []
        wanted = [Wanted("Ready", True, "Running", f"attempt {attempt} runs {spec.pods} pods")]
        return Plan(
            applies=[
                Apply(CONFIG_MAP, config_map(resource)),
                *(Apply(POD, pod(name, attempt, i)) for i in range(spec.pods)),
            ],
            deletes=[
                Delete(POD, _key(item), item["metadata"]["uid"], 0) for item in alive if _attempt(item) != attempt
            ],
            status={
                "attempt": attempt,
                "pods": spec.pods,
                "observedGeneration": resource.metadata.generation,
                "conditions": conditions(wanted, status.conditions, resource.metadata.generation, now),
            },
            events=events,
            requeue_after=timedelta(minutes=5),
        )


class GadgetController(WidgetController):
    """Controller[Gadget, Observed], with the Widgets' plan."""

    resource = Gadget


def config_map(resource: Widget) -> Manifest:
    """The child that is changed in place; `extra` is there only for some colors."""
    data = {"color": resource.spec.color}
    if resource.spec.color == "red":
        data["extra"] = "warm"
    return {"metadata": {"name": resource.metadata.name}, "data": data}


def pod(name: str, attempt: int, index: int) -> Manifest:
    """A pod of one attempt."""
    return {
        "metadata": {"name": f"{name}-{attempt}-{index}", "labels": {"attempt": str(attempt)}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {"name": "main", "image": "example", "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}}}
            ],
        },
    }


def _attempt(item: Manifest) -> int:
    return int(item["metadata"]["labels"]["attempt"])


def _key(item: Manifest) -> Any:
    from controllers.runtime.objects import key_of

    return key_of(item)


def _raise(fault: str) -> None:
    match fault:
        case "Terminal":
            raise TerminalError("WrongColor", "color is not for sale; choose another")
        case "Wait":
            raise WaitError("PaintMissing", "the paint is missing; buy some", after=timedelta(seconds=30))
        case "Retry":
            raise RetryError("BrushBroke", "the brush broke; a new one comes")
        case "Bug":
            raise KeyError("paint")
