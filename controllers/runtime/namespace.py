"""What a namespace needs once, whatever runs in it: an identity for pods, and the credentials of the default storage.

These objects belong to no single resource (``Apply(owned=False)``), have the same content whoever applies them, and
stay when the last resource goes.
"""

from __future__ import annotations

from base64 import b64encode

from controllers.runtime.controller import PolicyRule
from controllers.runtime.objects import MANAGED_LABELS, ROLE_BINDING, SECRET, SERVICE_ACCOUNT, Manifest, ObjectType
from controllers.runtime.plan import Apply
from controllers.runtime.settings import Settings, StorageSettings

WORKER_ACCOUNT = "headrace-worker"
"""ServiceAccount of pods that name none: it may patch the report of its own pod and nothing else."""
WORKER_CLUSTER_ROLE = "headrace-worker"
"""The chart's ClusterRole that is bound to it. The same in every release, since the bindings in people's namespaces
outlive one."""
STORAGE_SECRET = "headrace-storage"
"""Secret with the credentials of the default storage, under the names that S3 clients read from the environment."""
ONLINE_STORE_SECRET = "headrace-online-store"
"""Secret with the address of the default online store of FeatureSets."""
NAMESPACE_TYPES: tuple[ObjectType, ...] = (SERVICE_ACCOUNT, ROLE_BINDING, SECRET)
"""Types that `namespace_objects` applies; part of what each kind that uses it declares in `owns`."""


NAMESPACE_RULES: tuple[PolicyRule, ...] = (
    PolicyRule(("rbac.authorization.k8s.io",), ("clusterroles",), ("bind",), (WORKER_CLUSTER_ROLE,)),
    PolicyRule(("rbac.authorization.k8s.io",), ("rolebindings",), ("delete",), (WORKER_ACCOUNT,)),
)
"""RBAC for `namespace_objects`: binding the workers' ClusterRole takes the verb `bind` on it, and a binding of another
role must be deleted before it can be made again."""


def namespace_objects(
    namespace: str,
    settings: Settings,
    *,
    account: bool = True,
    storage: bool = True,
    online_store: bool = False,
    lost: bool = False,
) -> tuple[Apply, ...]:
    """The shared objects of one namespace, in the order in which pods need them.

    Args:
        namespace: Where they go.
        settings: Names and credentials of this installation.
        account: A pod runs as `headrace-worker` (no serviceAccountName was given).
        storage: A pod uses the installation's default storage (no secretRef was given).
        online_store: A pod uses the installation's default online store.
        lost: A pod waits for one of the Secrets: somebody deleted it.
    """
    applies: list[Apply] = []
    if account:
        applies.append(Apply(SERVICE_ACCOUNT, service_account(namespace), owned=False))
        applies.append(Apply(ROLE_BINDING, role_binding(namespace), owned=False))
    if storage:
        applies.append(Apply(SECRET, storage_secret(namespace, settings.storage), owned=False, lost=lost))
    if online_store:
        applies.append(Apply(SECRET, online_store_secret(namespace, settings.online_store_uri), owned=False, lost=lost))
    return tuple(applies)


def service_account(namespace: str) -> Manifest:
    """The identity of worker, router and predictor pods. Its token is mounted only where a pod asks for it."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(namespace, WORKER_ACCOUNT),
        "automountServiceAccountToken": False,
    }


def role_binding(namespace: str) -> Manifest:
    """Lets the account report in this namespace; the chart's ValidatingAdmissionPolicy narrows it to the own pod."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": _metadata(namespace, WORKER_ACCOUNT),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": WORKER_CLUSTER_ROLE},
        "subjects": [{"kind": "ServiceAccount", "name": WORKER_ACCOUNT, "namespace": namespace}],
    }


def storage_secret(namespace: str, storage: StorageSettings) -> Manifest:
    """Credentials of the default storage; keys without a value are left out, so the client's own defaults hold."""
    values = {
        "AWS_ACCESS_KEY_ID": storage.access_key_id,
        "AWS_SECRET_ACCESS_KEY": storage.secret_access_key,
        "AWS_ENDPOINT_URL": storage.endpoint,
        "AWS_REGION": storage.region,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(namespace, STORAGE_SECRET),
        "type": "Opaque",
        "data": {name: b64encode(value.encode()).decode() for name, value in values.items() if value},
    }


def online_store_secret(namespace: str, uri: str) -> Manifest:
    """Address of the default online store, with its credentials."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(namespace, ONLINE_STORE_SECRET),
        "type": "Opaque",
        "data": {"HEADRACE_ONLINE_STORE_URI": b64encode(uri.encode()).decode()},
    }


def _metadata(namespace: str, name: str) -> Manifest:
    return {"name": name, "namespace": namespace, "labels": dict(MANAGED_LABELS)}
