"""The parts that all pods of the platform share: hardening, identity, storage credentials, and people's PodOptions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from controllers.runtime.namespace import STORAGE_SECRET, WORKER_ACCOUNT
from controllers.runtime.objects import Manifest
from headrace.api.meta import EnvVar, LocalReference, PodOptions

USER_ID = 65532
"""User and group of every container: named by number, so that images made for root run too."""
TMP_VOLUME = "tmp"


def pod_security_context() -> Manifest:
    """Pod-level half of the restricted Pod Security Standard."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security_context() -> Manifest:
    """Container-level half of the restricted Pod Security Standard, with a read-only root file system."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def tmp_volume() -> Manifest:
    """The one place that a container may write to."""
    return {"name": TMP_VOLUME, "emptyDir": {}}


def tmp_mount() -> Manifest:
    """Mount of `tmp_volume`."""
    return {"name": TMP_VOLUME, "mountPath": "/tmp"}


def variable(name: str, value: str | int) -> Manifest:
    """A literal environment variable."""
    return {"name": name, "value": str(value)}


def identity_env() -> list[Manifest]:
    """Who the pod is, and a home for libraries that look up the user: the numeric one has no passwd entry."""
    return [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        variable("HOME", "/tmp"),
        variable("USER", "headrace"),
        variable("PYTHONUNBUFFERED", "1"),
    ]


def storage_env_from(secret_ref: LocalReference | None) -> list[Manifest]:
    """Storage credentials as environment: those of the named Secret, else the installation's default ones."""
    return [{"secretRef": {"name": secret_ref.name if secret_ref else STORAGE_SECRET}}]


def merged_env(base: Iterable[Manifest], own: Sequence[EnvVar]) -> list[Manifest]:
    """The platform's variables with people's added; the same name is theirs, as they asked for it by name."""
    merged = {item["name"]: item for item in base}
    merged.update({item.name: item.manifest() for item in own})
    return list(merged.values())


def merged_affinity(base: Mapping[str, Any], own: Mapping[str, Any] | None) -> Manifest:
    """Two affinities as one: mappings are united, lists appended.

    The platform's own rules are preferences and anti-affinities, whose lists mean AND; it sets no nodeSelectorTerms,
    whose entries mean OR.
    """
    merged: Manifest = dict(base)
    for key, value in (own or {}).items():
        present = merged.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            merged[key] = merged_affinity(present, value)
        elif isinstance(present, list) and isinstance(value, list):
            merged[key] = [*present, *value]
        else:
            merged[key] = value
    return merged


def resources(options: PodOptions, limits: Mapping[str, int | str] | None = None) -> Manifest:
    """Container resources as people set them, with limits that the platform adds."""
    every_limit = {**options.resources.limits, **(limits or {})}
    return {
        name: {resource: str(amount) for resource, amount in amounts.items()}
        for name, amounts in (("requests", options.resources.requests), ("limits", every_limit))
        if amounts
    }


def pod_spec(
    options: PodOptions,
    *,
    containers: Sequence[Manifest],
    init_containers: Sequence[Manifest] = (),
    volumes: Sequence[Manifest] = (),
    affinity: Mapping[str, Any] | None = None,
    node_selector: Mapping[str, str] | None = None,
    tolerations: Sequence[Manifest] = (),
    token: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> Manifest:
    """A hardened pod spec with people's options merged into the platform's.

    Args:
        options: What people set: placement, pull secrets, priority, ServiceAccount. Their resources and env belong to
            the main container and are merged by its builder (`resources`, `merged_env`).
        containers: Containers without securityContext, which is set here.
        init_containers: The same, run before.
        volumes: Beside `/tmp`, which every container gets.
        affinity: The platform's own affinity.
        node_selector: The platform's own node labels.
        tolerations: The platform's own tolerations.
        token: Mount the ServiceAccount's token (a pod that reports needs it).
        extra: Further fields of the pod spec.
    """
    spec: Manifest = {
        "serviceAccountName": options.service_account_name or WORKER_ACCOUNT,
        "automountServiceAccountToken": token,
        "enableServiceLinks": False,
        "securityContext": pod_security_context(),
        "containers": [_hardened(item) for item in containers],
        "volumes": [tmp_volume(), *volumes],
        **(extra or {}),
    }
    if init_containers:
        spec["initContainers"] = [_hardened(item) for item in init_containers]
    every_affinity = merged_affinity(affinity or {}, options.affinity)
    if every_affinity:
        spec["affinity"] = every_affinity
    every_label = {**(node_selector or {}), **options.node_selector}
    if every_label:
        spec["nodeSelector"] = every_label
    every_toleration = [*tolerations, *options.tolerations]
    if every_toleration:
        spec["tolerations"] = every_toleration
    if options.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": item.name} for item in options.image_pull_secrets]
    if options.priority_class_name:
        spec["priorityClassName"] = options.priority_class_name
    return spec


def _hardened(container: Manifest) -> Manifest:
    return {
        **container,
        "securityContext": container_security_context(),
        "volumeMounts": [tmp_mount(), *container.get("volumeMounts", [])],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
