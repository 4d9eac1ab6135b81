"""Plain Kubernetes objects: what a child type is, and how one object is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""

MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
INSTANCE = "app.kubernetes.io/instance"
OWNER_UID = "headrace.dev/owner-uid"
OWNER_KIND = "headrace.dev/owner-kind"
"""Labels with uid and kind of the resource that an object belongs to, where that is not its controlling owner: the pods
of a Deployment are controlled by a ReplicaSet. Builders set them on pod templates, beside the label of the resource's
name (INSTANCE). The caches' owner is what these labels say where they are set, else the controlling owner."""
REPORT = "headrace.dev/report"
"""Annotation of a pod with what the process inside says about its work, one line of JSON."""
MANAGED_LABELS: Mapping[str, str] = {MANAGED_BY: "headrace"}
"""On every child; the watch caches select by it on the server."""


class Key(NamedTuple):
    """Namespace and name of an object; namespace is empty for cluster-scoped ones."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class ObjectType:
    """A type of the API server.

    Attributes:
        watched: Kept in a watch cache. Unwatched types are written and never read (Secrets: the operator may not
            read them); what was applied is remembered by hash instead.
        managed_only: The cache holds only objects labelled `app.kubernetes.io/managed-by=headrace`.
        view: Name of a second cache of a type, which holds others of its objects, or less of each.
        fields: Field selector of what the cache holds.
        reduce: What the cache keeps of an object; its name, namespace, uid and resourceVersion must stay.
    """

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True
    watched: bool = True
    managed_only: bool = True
    view: str = ""
    fields: str = ""
    reduce: Callable[[Manifest], Manifest] | None = None

    @property
    def cache_name(self) -> str:
        """Name of its cache in metrics and health checks."""
        return f"{self.plural} ({self.view})" if self.view else self.plural

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]


POD = ObjectType("v1", "Pod", "pods")
SERVICE = ObjectType("v1", "Service", "services")
CONFIG_MAP = ObjectType("v1", "ConfigMap", "configmaps")
SERVICE_ACCOUNT = ObjectType("v1", "ServiceAccount", "serviceaccounts")
SECRET = ObjectType("v1", "Secret", "secrets", watched=False)
NODE = ObjectType("v1", "Node", "nodes", namespaced=False, managed_only=False)
BATCH_JOB = ObjectType("batch/v1", "Job", "jobs")
DEPLOYMENT = ObjectType("apps/v1", "Deployment", "deployments")
PDB = ObjectType("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
HPA = ObjectType("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
NETWORK_POLICY = ObjectType("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
ROLE_BINDING = ObjectType("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")


def key_of(manifest: Manifest) -> Key:
    """The key of an object."""
    metadata = manifest["metadata"]
    return Key(metadata.get("namespace") or "", metadata["name"])


def by_name(objects: Iterable[Manifest]) -> dict[str, Manifest]:
    """Objects of one namespace and type by their name."""
    return {item["metadata"]["name"]: item for item in objects}
