"""What is said of a TrainingJob at `kubectl apply` that takes a look at other objects."""

from __future__ import annotations

from collections.abc import Iterator

from controllers.runtime.admission import Known, Reference, Verdict, conflicts, missing_secret, unoffered
from controllers.runtime.objects import CONFIG_MAP, NODE, POD, SECRET, SERVICE, Key, Manifest, ObjectType
from controllers.trainingjob.builders import GPU_PRODUCT
from controllers.trainingjob.names import service_name, worker_name
from controllers.trainingjob.servers import server_name, servers_service_name
from headrace.api.trainingjob import TrainingJob

REVIEWS: tuple[ObjectType, ...] = (CONFIG_MAP, NODE, POD, SECRET, SERVICE)
"""Types that a review reads."""


def references(job: TrainingJob, *, created: bool) -> list[Reference]:
    """What the review looks at."""
    found = _children(job) if created else []
    found += [Reference(SECRET, _key(job, name)) for name, _, _ in _secrets(job)]
    script = job.spec.script
    if script is not None and script.config_map is not None:
        found.append(Reference(CONFIG_MAP, _key(job, script.config_map.name)))
    if job.spec.gpu is not None:
        found.append(Reference(NODE))
    return found


def review(job: TrainingJob, known: Known, *, created: bool) -> Verdict:
    """Refuse a name whose children belong to somebody else; warn of what the workers will wait for."""
    warnings = script_is_missing(job, known)
    for name, path, keys in _secrets(job):
        warnings += missing_secret(known, job.metadata.namespace, name, path, keys)
    warnings += gpus_are_missing(job, known)
    return Verdict(conflicts(job, known, _children(job)) if created else (), warnings)


def script_is_missing(job: TrainingJob, known: Known) -> list[str]:
    """A warning when the ConfigMap with the script, or its key, does not exist."""
    script = job.spec.script
    if script is None or script.config_map is None:
        return []
    name, key, namespace = script.config_map.name, script.config_map.key, job.metadata.namespace
    if known.is_missing(CONFIG_MAP, _key(job, name)):
        return [
            f"spec.script.configMap: ConfigMap {name!r} does not exist in namespace {namespace}; the workers wait "
            f"until it does: kubectl create configmap {name} -n {namespace} --from-file={key}"
        ]
    found = known.get(CONFIG_MAP, _key(job, name))
    keys = sorted({**(found.get("data") or {}), **(found.get("binaryData") or {})}) if found is not None else [key]
    if key in keys:
        return []
    has = f"it has {', '.join(keys[:8])}" if keys else "it is empty"
    return [f"spec.script.configMap.key: ConfigMap {name!r} has no key {key!r} ({has}); change key, or add the file"]


def gpus_are_missing(job: TrainingJob, known: Known) -> list[str]:
    """A warning when no node offers the GPUs, or the product, as the cluster is now."""
    gpu = job.spec.gpu
    if gpu is None or gpu.resource_claim is not None:
        return []
    if found := unoffered(known, NODE, gpu.resource_name, gpu.count, "spec.gpu"):
        return found
    nodes = known.all(NODE)
    if gpu.product is None or nodes is None:
        return []
    products = sorted({label for node in nodes if (label := _product(node)) is not None})
    if gpu.product in products:
        return []
    have = f"nodes have {', '.join(products[:8])}" if products else "no node has this label"
    return [
        f"spec.gpu.product: no node is labelled {GPU_PRODUCT}={gpu.product} now ({have}), so the workers wait for one: "
        "change product, or add such a node"
    ]


def _children(job: TrainingJob) -> list[Reference]:
    """Those whose names are likeliest to be taken: the names of all other pods follow from the first one's."""
    name = job.metadata.name
    if job.spec.topology.type == "ParameterServer":
        return [
            Reference(SERVICE, _key(job, servers_service_name(name))),
            Reference(POD, _key(job, server_name(name, 0))),
            Reference(POD, _key(job, worker_name(name, 0))),
        ]
    service = [Reference(SERVICE, _key(job, service_name(name)))] if job.spec.most_workers > 1 else []
    return [*service, Reference(POD, _key(job, worker_name(name, 0)))]


def _secrets(job: TrainingJob) -> Iterator[tuple[str, str, str]]:
    """Secrets that the job names: name, field, and the keys that they are to have."""
    if job.spec.storage is not None and job.spec.storage.secret_ref is not None:
        yield job.spec.storage.secret_ref.name, "spec.storage.secretRef", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    script = job.spec.script
    if script is not None and script.git is not None and script.git.secret_ref is not None:
        yield script.git.secret_ref.name, "spec.script.git.secretRef", "username and password"


def _product(node: Manifest) -> str | None:
    product: str | None = (node["metadata"].get("labels") or {}).get(GPU_PRODUCT)
    return product


def _key(job: TrainingJob, name: str) -> Key:
    return Key(job.metadata.namespace, name)
