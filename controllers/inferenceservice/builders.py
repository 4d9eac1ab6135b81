"""The children of an InferenceService: a function per object, from the resource to the manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from controllers.runtime import git
from controllers.runtime.objects import COMPONENT, INSTANCE, MANAGED_LABELS, Manifest
from controllers.runtime.pods import storage_env_from
from controllers.runtime.settings import Settings
from controllers.runtime.workload import DRAIN, PORT_NAME, Probes, Workload, content_hash
from headrace.api import InferenceService
from headrace.api.chain import CHAIN_FILE, GRPC_PORT, HTTP_PORT, PREDICTOR, Chain, RemotePredictor
from headrace.api.inferenceservice import Batching, ModelSource, RemoteOptions, RequestLog, StepOptions
from headrace.api.meta import parse_duration
from headrace.api.routing import TRAFFIC, TRAFFIC_FILE

ROUTER = "router"
"""Component label and container name of the routers; the predictors' is `headrace.api.chain.PREDICTOR`."""
SERVICE_PORT = 80
GRPC_PORT_NAME = "grpc"
CHAIN_DIRECTORY = "/etc/headrace/chain"
TRAFFIC_DIRECTORY = "/etc/headrace/traffic"
CODE_DIRECTORY = "/etc/headrace/predictor"
CREDENTIALS_DIRECTORY = "/etc/headrace/credentials"
"""Where routers find the Secrets of fallback models: a folder per Secret, a file per AWS_* name."""
MONITORING = "headrace.dev/monitoring"
"""Label of namespaces whose pods may scrape the predictors' metrics, with the value "true"."""
LIVE = "/v2/health/live"
READY = "/v2/health/ready"


def part_name(service: InferenceService, component: str) -> str:
    """Name of the Deployment, Service, budget and policy of the predictors, or of what runs beside them."""
    return f"{service.metadata.name}-{component}"


def predictor_name(service: InferenceService) -> str:
    """Name of the predictors' Deployment, Service, budget and policy."""
    return part_name(service, PREDICTOR)


def runs_inside(service: InferenceService) -> bool:
    """The primary runs inside the routers."""
    return service.spec.predictor.inference == "Local"


def predictor_port(service: InferenceService) -> int:
    """Where predictors listen."""
    container = service.spec.predictor.container
    return container.port if container else HTTP_PORT


def url(service: InferenceService, settings: Settings) -> str:
    """Address inside the cluster."""
    return f"http://{service.metadata.name}.{service.metadata.namespace}.svc.{settings.cluster_domain}"


def chain(service: InferenceService, settings: Settings) -> Chain:
    """What the routers execute."""
    return Chain(
        name=service.metadata.name,
        namespace=service.metadata.namespace,
        predictor=remote(service, settings, PREDICTOR),
        timeout=service.spec.timeout,
        fallback=service.spec.fallback,
        request_log=request_log(service, settings),
    )


def request_log(service: InferenceService, settings: Settings) -> RequestLog | None:
    """What is kept of requests, with the folder."""
    asked = service.spec.request_log
    if asked is None or asked.storage_uri is not None:
        return asked
    folder = f"{settings.storage.uri}/{service.metadata.namespace}/{service.metadata.name}/requests"
    return asked.model_copy(update={"storage_uri": folder})


def remote(service: InferenceService, settings: Settings, component: str) -> RemotePredictor:
    """How routers ask the pods of the predictor, or of what runs beside it with the same options."""
    host = f"{part_name(service, component)}.{service.metadata.namespace}.svc.{settings.cluster_domain}."
    options = {name: getattr(service.spec.predictor, name) for name in RemoteOptions.model_fields}
    # The final dot of the host spares the name servers the search list.
    container = service.spec.predictor.container
    name = (container.model_name or "") if container else ""
    inside = service.spec.predictor.model if runs_inside(service) and component == PREDICTOR else None
    return RemotePredictor(host=host, port=predictor_port(service), model_name=name, model=inside, **options)


def chain_config_map(service: InferenceService, settings: Settings) -> Manifest:
    """The chain, immutable and named by its content.

    Each revision of the routers mounts its own: a router that starts again during a rolling update reads what its
    revision was made for, and no kubelet hands an old content to a new pod.
    """
    text = chain(service, settings).model_dump_json(by_alias=True, exclude_none=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(service, f"{service.metadata.name}-chain-{content_hash(text)}", ROUTER),
        "immutable": True,
        "data": {CHAIN_FILE: text},
    }


def router(service: InferenceService, settings: Settings, chain_name: str) -> Workload:
    """The pods that answer the service's address.

    Args:
        service: The resource.
        settings: Of this installation.
        chain_name: Name of the ConfigMap with the chain.
    """
    spec = service.spec.router
    # The predictor's time twice: a canary, which comes and goes without a rolling update, has as much before it.
    steps = (service.spec.predictor, service.spec.predictor, *service.spec.fallback)
    longest = sum(map(_timeout, steps), timedelta())
    secrets = sorted(_router_secrets(service))
    return Workload(
        name=service.metadata.name,
        namespace=service.metadata.namespace,
        instance=service.metadata.name,
        owner_kind=service.info.kind,
        owner_uid=service.metadata.uid,
        component=ROUTER,
        image=settings.serving_image,
        image_pull_policy=settings.image_pull_policy,
        args=(
            *("python", "-m", "headrace.serving", "router"),
            *("--chain", f"{CHAIN_DIRECTORY}/{CHAIN_FILE}"),
            *("--traffic", f"{TRAFFIC_DIRECTORY}/{TRAFFIC_FILE}"),
            *("--grpc-port", str(GRPC_PORT)),
            *_serving(longest),
        ),
        options=spec,
        replicas=spec.replicas,
        most_replicas=spec.replicas,
        port=HTTP_PORT,
        more_ports={GRPC_PORT_NAME: GRPC_PORT},
        # A router is up before anything answers behind it; it is ready when something does.
        probes=Probes(startup=LIVE, readiness=READY, liveness=LIVE),
        longest_request=longest,
        ingress=({"ports": [_port(), _port(GRPC_PORT)]},),
        env_from=storage_env_from(None) if uses_default_storage_in_router(service) else (),
        volumes=(
            {"name": "chain", "configMap": {"name": chain_name}},
            {
                "name": "traffic",
                "downwardAPI": {
                    "items": [
                        {"path": TRAFFIC_FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{TRAFFIC}']"}},
                    ]
                },
            },
            *(_secret_volume(index, name) for index, name in enumerate(secrets)),
        ),
        volume_mounts=(
            {"name": "chain", "mountPath": CHAIN_DIRECTORY, "readOnly": True},
            {"name": "traffic", "mountPath": TRAFFIC_DIRECTORY, "readOnly": True},
            *(
                {"name": _secret_volume_name(index), "mountPath": f"{CREDENTIALS_DIRECTORY}/{name}", "readOnly": True}
                for index, name in enumerate(secrets)
            ),
        ),
        token=True,
    )


def predictor(service: InferenceService, settings: Settings, replicas: int, component: str = PREDICTOR) -> Workload:
    """The pods of the primary model, or of a canary of it.

    Args:
        service: The resource.
        settings: Of this installation.
        replicas: Pods asked for now, by the spec or by the autoscaler.
        component: What the pods are.
    """
    spec = service.spec.predictor
    longest = _timeout(spec)
    port = predictor_port(service)
    code = predictor_code(service, settings)
    return Workload(
        name=part_name(service, component),
        namespace=service.metadata.namespace,
        instance=service.metadata.name,
        owner_kind=service.info.kind,
        owner_uid=service.metadata.uid,
        component=component,
        image=predictor_image(service, settings),
        image_pull_policy=settings.image_pull_policy,
        args=spec.container.command if spec.container else _predictor_command(service, code, longest),
        arguments=spec.container.args if spec.container else (),
        options=spec,
        replicas=replicas,
        most_replicas=spec.max_replicas if component == PREDICTOR else replicas,
        port=port,
        # Loading the model is part of starting.
        probes=Probes(startup=READY, readiness=READY, liveness=LIVE),
        longest_request=longest,
        ingress=({"from": [_pods_of(service, ROUTER), _monitoring()], "ports": [_port(port)]},),
        env_from=_predictor_env_from(service),
        volumes=code.volumes,
        volume_mounts=code.mounts,
        init_containers=code.init_containers,
    )


def predictor_image(service: InferenceService, settings: Settings) -> str:
    """The spec's image, else the one that has the library of the model's format."""
    spec = service.spec.predictor
    if spec.image is not None:
        return spec.image
    special = {"PyTorch": settings.serving_torch_image, "PMML": settings.serving_pmml_image}
    return special.get(spec.model.model_format if spec.model else "", settings.serving_image)


@dataclass(frozen=True, slots=True)
class Code:
    """What a predictor of format Python has in its pod; empty for other formats.

    Attributes:
        path: The Python file.
    """

    path: str = ""
    volumes: Sequence[Manifest] = ()
    mounts: Sequence[Manifest] = ()
    init_containers: Sequence[Manifest] = ()


def predictor_code(service: InferenceService, settings: Settings) -> Code:
    """Where the predictor's own class comes from: a mounted key of a ConfigMap, or a repository cloned before."""
    model = service.spec.predictor.model
    code = model.code if model else None
    if code is not None and code.config_map is not None:
        items = [{"key": code.config_map.key, "path": code.config_map.key}]
        return Code(
            path=f"{CODE_DIRECTORY}/{code.config_map.key}",
            volumes=({"name": "code", "configMap": {"name": code.config_map.name, "items": items}},),
            mounts=({"name": "code", "mountPath": CODE_DIRECTORY, "readOnly": True},),
        )
    if code is not None and code.git is not None:
        workspace: Manifest = {"name": "workspace", "mountPath": git.WORKSPACE}
        return Code(
            path=f"{git.REPOSITORY}/{code.git.path}",
            volumes=({"name": "workspace", "emptyDir": {}},),
            mounts=(workspace,),
            init_containers=(git.clone(code.git, settings, workspace, "predictor.model.code.git"),),
        )
    return Code()


def _predictor_command(service: InferenceService, code: Code, longest: timedelta) -> tuple[str, ...]:
    model = service.spec.predictor.model
    return (
        *("python", "-m", "headrace.serving", "predictor"),
        *("--name", service.metadata.name),
        *(_model_arguments(model) if model else ()),
        *(("--code", code.path) if code.path else ()),
        *(_batching_arguments(service.spec.predictor.batching)),
        *_serving(longest),
    )


def _batching_arguments(batching: Batching | None) -> tuple[str, ...]:
    if batching is None:
        return ()
    return ("--batch-size", str(batching.max_size), "--batch-latency", batching.max_latency)


def _model_arguments(model: ModelSource) -> tuple[str, ...]:
    """What most models need can be read at a glance; the rest is JSON."""
    plain = {"model_format", "storage_uri", "secret_ref"}
    if model.storage_uri and not model.model_dump(exclude=plain, exclude_defaults=True):
        return ("--model-format", model.model_format, "--storage-uri", model.storage_uri)
    return ("--model", model.model_dump_json(by_alias=True, exclude_defaults=True))


def _predictor_env_from(service: InferenceService) -> list[Manifest]:
    """Credentials of the store and of the registry; a container of somebody else gets none."""
    model = service.spec.predictor.model
    if model is None:
        return []
    found = storage_env_from(model.secret_ref)
    if model.registry is not None and model.registry.secret_ref is not None:
        found.append({"secretRef": {"name": model.registry.secret_ref.name}})
    return found


def router_service(service: InferenceService) -> Manifest:
    """The address of the service.

    Clients are sent to a router of their own zone while it has a ready one: until a dead zone is noticed (about 40 s),
    clients elsewhere are not sent there.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service, service.metadata.name, ROUTER),
        "spec": {
            "type": "ClusterIP",
            "selector": _selector(service, ROUTER),
            "ports": [
                {"name": PORT_NAME, "port": SERVICE_PORT, "targetPort": PORT_NAME, "protocol": "TCP"},
                {
                    "name": GRPC_PORT_NAME,
                    "port": GRPC_PORT,
                    "targetPort": GRPC_PORT_NAME,
                    "protocol": "TCP",
                    # Gateways and meshes learn from it that this is HTTP/2 without TLS.
                    "appProtocol": "kubernetes.io/h2c",
                },
            ],
            "trafficDistribution": "PreferSameZone",
        },
    }


def predictor_service(service: InferenceService, component: str = PREDICTOR) -> Manifest:
    """The names by which routers find each replica that is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service, part_name(service, component), component),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": False,
            "selector": _selector(service, component),
            "ports": [
                {"name": PORT_NAME, "port": predictor_port(service), "targetPort": PORT_NAME, "protocol": "TCP"},
            ],
        },
    }


def autoscaler(service: InferenceService) -> Manifest:
    """Keeps the predictors' CPU near the target."""
    spec = service.spec.predictor
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(service, predictor_name(service), PREDICTOR),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": predictor_name(service)},
            "minReplicas": spec.min_replicas,
            "maxReplicas": spec.max_replicas,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": spec.target_cpu_utilization},
                    },
                }
            ],
        },
    }


def uses_default_storage_in_router(service: InferenceService) -> bool:
    """Whether a model inside the routers, or the request log, names no Secret of its own."""
    log = service.spec.request_log
    return any(model.secret_ref is None for model in router_models(service)) or (
        log is not None and log.secret_ref is None
    )


def router_models(service: InferenceService) -> list[ModelSource]:
    """Models that run inside the routers."""
    models = [step.model for step in service.spec.fallback if step.model is not None]
    if runs_inside(service) and service.spec.predictor.model is not None:
        models.insert(0, service.spec.predictor.model)
    return models


def _router_secrets(service: InferenceService) -> set[str]:
    """Secrets that the router's own models name: of their store, of their registry."""
    models = router_models(service)
    references = [model.secret_ref for model in models]
    references += [model.registry.secret_ref for model in models if model.registry is not None]
    references += [service.spec.request_log.secret_ref] if service.spec.request_log is not None else []
    return {reference.name for reference in references if reference is not None}


def _selector(service: InferenceService, component: str) -> dict[str, str]:
    return {**MANAGED_LABELS, INSTANCE: service.metadata.name, COMPONENT: component}


def _metadata(service: InferenceService, name: str, component: str) -> Manifest:
    return {"name": name, "namespace": service.metadata.namespace, "labels": _selector(service, component)}


def _timeout(step: StepOptions) -> timedelta:
    return parse_duration(step.timeout)


def _serving(longest_request: timedelta) -> tuple[str, ...]:
    """Arguments of both kinds of server."""
    return (
        *("--port", str(HTTP_PORT)),
        *("--drain-seconds", str(int(DRAIN.total_seconds()))),
        *("--grace-seconds", str(math.ceil(longest_request.total_seconds()))),
    )


def _port(number: int = HTTP_PORT) -> Mapping[str, Any]:
    return {"port": number, "protocol": "TCP"}


def _pods_of(service: InferenceService, component: str) -> Mapping[str, Any]:
    return {"podSelector": {"matchLabels": _selector(service, component)}}


def _monitoring() -> Mapping[str, Any]:
    return {"namespaceSelector": {"matchLabels": {MONITORING: "true"}}}


def _secret_volume_name(index: int) -> str:
    # Names of Secrets may be longer than a volume's and have dots.
    return f"credentials-{index}"


def _secret_volume(index: int, secret: str) -> Manifest:
    # Optional: a fallback model without its Secret is a step that is not ready, not a router that does not start.
    return {"name": _secret_volume_name(index), "secret": {"secretName": secret, "optional": True}}
