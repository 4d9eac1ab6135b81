"""The children of a FeatureSet: a function per object, from the resource to the manifest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import timedelta

from controllers.runtime.namespace import ONLINE_STORE_SECRET
from controllers.runtime.objects import (
    COMPONENT,
    INSTANCE,
    MANAGED_LABELS,
    OWNER_KIND,
    OWNER_UID,
    Manifest,
)
from controllers.runtime.pods import identity_env, merged_env, pod_spec, resources, storage_env_from
from controllers.runtime.settings import Settings
from controllers.runtime.workload import DRAIN, PORT_NAME, Probes, Workload, content_hash
from headrace.api import FeatureSet
from headrace.api.featureset.served import FILE, HTTP_PORT, ServedFeatureSet

SERVER = "features"
REFRESH = "refresh"
"""Component labels and container names."""
SERVICE_PORT = 80
CONFIG_DIRECTORY = "/etc/headrace/features"
LONGEST_REQUEST = timedelta(seconds=5)
NUMBER = "headrace.dev/refresh-number"
TRIGGER = "headrace.dev/refresh-trigger"
"""Annotations of a refresh's Job."""
EX_CONFIG = 78
"""Exit code of a refresh whose configuration or source cannot work (sysexits.h)."""
BACKOFF_LIMIT = 4
"""Pods of one refresh that may fail; each goes on where the one before was."""


def url(feature_set: FeatureSet, settings: Settings) -> str:
    """Address of the servers inside the cluster."""
    return f"http://{server_name(feature_set)}.{feature_set.metadata.namespace}.svc.{settings.cluster_domain}"


def server_name(feature_set: FeatureSet) -> str:
    """Name of the servers' Deployment and Service, which an InferenceService of the same name leaves free."""
    return f"{feature_set.metadata.name}-{SERVER}"


def job_name(feature_set: FeatureSet, number: int) -> str:
    """Name of a refresh's Job."""
    return f"{feature_set.metadata.name}-{REFRESH}-{number}"


def config_map(feature_set: FeatureSet) -> Manifest:
    """What the pods read, immutable and named by its content: each revision of the servers, and each refresh, reads
    what it was made for.
    """
    spec = feature_set.spec
    # Where pods run and how many is not theirs to know; a change of it starts no server anew.
    told = spec.model_copy(
        update={
            "server": type(spec.server)(cache=spec.server.cache),
            "refresh": spec.refresh.model_copy(
                update={"pod": type(spec.refresh.pod)(), "schedule": "", "time_zone": "UTC"}
            ),
        }
    )
    served = ServedFeatureSet(namespace=feature_set.metadata.namespace, name=feature_set.metadata.name, spec=told)
    text = served.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(feature_set, f"{server_name(feature_set)}-{content_hash(text)}", SERVER),
        "immutable": True,
        "data": {FILE: text},
    }


def server(feature_set: FeatureSet, settings: Settings, config: str) -> Workload:
    """The pods that answer.

    Args:
        feature_set: The resource.
        settings: Of this installation.
        config: Name of the ConfigMap.
    """
    spec = feature_set.spec
    return Workload(
        name=server_name(feature_set),
        namespace=feature_set.metadata.namespace,
        instance=feature_set.metadata.name,
        owner_kind=feature_set.info.kind,
        owner_uid=feature_set.metadata.uid,
        component=SERVER,
        image=settings.serving_image,
        image_pull_policy=settings.image_pull_policy,
        args=(
            *("python", "-m", "headrace.features", "serve"),
            *("--config", f"{CONFIG_DIRECTORY}/{FILE}"),
            *("--port", str(HTTP_PORT)),
            *("--drain-seconds", str(int(DRAIN.total_seconds()))),
            *("--grace-seconds", str(math.ceil(LONGEST_REQUEST.total_seconds()))),
        ),
        options=spec.server,
        replicas=spec.server.replicas,
        most_replicas=spec.server.replicas,
        port=HTTP_PORT,
        # A server is up before there is anything to answer; it is ready with the first version.
        probes=Probes(startup="/livez", readiness="/readyz", liveness="/livez"),
        longest_request=LONGEST_REQUEST,
        ingress=({"ports": [{"port": HTTP_PORT, "protocol": "TCP"}]},),
        env_from=_env_from(feature_set),
        volumes=(_config_volume(config),),
        volume_mounts=(_config_mount(),),
        token=True,
    )


def service(feature_set: FeatureSet) -> Manifest:
    """The servers' address; clients are sent to a server of their own zone while it has a ready one."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(feature_set, server_name(feature_set), SERVER),
        "spec": {
            "type": "ClusterIP",
            "selector": _labels(feature_set, SERVER),
            "ports": [{"name": PORT_NAME, "port": SERVICE_PORT, "targetPort": PORT_NAME, "protocol": "TCP"}],
            "trafficDistribution": "PreferSameZone",
        },
    }


def refresh_job(
    feature_set: FeatureSet, settings: Settings, config: str, number: int, trigger: str, keep: Iterable[str]
) -> Manifest:
    """One refresh.

    Args:
        feature_set: The resource.
        settings: Of this installation.
        config: Name of the ConfigMap.
        number: Of the refresh.
        trigger: Why it is begun.
        keep: Hashes of transforms that servers of other revisions still serve.
    """
    options = feature_set.spec.refresh.pod
    labels = {
        **_labels(feature_set, REFRESH),
        OWNER_KIND: feature_set.info.kind,
        OWNER_UID: feature_set.metadata.uid,
    }
    container: Manifest = {
        "name": REFRESH,
        "image": settings.serving_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": [
            *("python", "-m", "headrace.features", "refresh"),
            *("--config", f"{CONFIG_DIRECTORY}/{FILE}"),
            *("--keep", ",".join(sorted(keep))),
        ],
        "env": merged_env(identity_env(), options.env),
        "envFrom": _env_from(feature_set),
        "resources": resources(options) or {"requests": {"cpu": "100m", "memory": "256Mi"}},
        "volumeMounts": [_config_mount()],
    }
    spec = pod_spec(options, containers=[container], volumes=[_config_volume(config)], extra={"restartPolicy": "Never"})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            **_metadata(feature_set, job_name(feature_set, number), REFRESH),
            "annotations": {NUMBER: str(number), TRIGGER: trigger},
        },
        "spec": {
            "backoffLimit": BACKOFF_LIMIT,
            "completions": 1,
            "parallelism": 1,
            # Two pods at once would write the same rows; the one that comes after goes on where the other was.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": REFRESH, "operator": "In", "values": [EX_CONFIG]},
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def uses_default_storage(feature_set: FeatureSet) -> bool:
    """Whether the source names no Secret of its own."""
    return feature_set.spec.source.secret_ref is None


def uses_default_store(feature_set: FeatureSet) -> bool:
    """Whether the installation's online store is used."""
    return feature_set.spec.online_store.secret_ref is None


def _env_from(feature_set: FeatureSet) -> list[Manifest]:
    store = feature_set.spec.online_store.secret_ref
    return [
        *storage_env_from(feature_set.spec.source.secret_ref),
        {"secretRef": {"name": store.name if store else ONLINE_STORE_SECRET}},
    ]


def _config_volume(config: str) -> Manifest:
    return {"name": "config", "configMap": {"name": config}}


def _config_mount() -> Manifest:
    return {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True}


def _labels(feature_set: FeatureSet, component: str) -> dict[str, str]:
    return {**MANAGED_LABELS, INSTANCE: feature_set.metadata.name, COMPONENT: component}


def _metadata(feature_set: FeatureSet, name: str, component: str) -> Manifest:
    return {"name": name, "namespace": feature_set.metadata.namespace, "labels": _labels(feature_set, component)}
