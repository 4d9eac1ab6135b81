"""Settings of the operator process: each an environment variable `HEADRACE_*`, some also a flag that overrides it.

The chart sets the variables; `python operator --help` lists them all.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from controllers.runtime.manager import ManagerOptions
from controllers.runtime.settings import Settings, StorageSettings

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """The admission webhook.

    Attributes:
        secret: Secret of the operator's namespace that its certificate is kept in.
        configuration: ValidatingWebhookConfiguration whose caBundle the operator keeps; empty where somebody else
            (cert-manager) keeps that and the Secret.
        names: DNS names and addresses that the API server reaches it by.
        port: Port of the HTTPS server; 0 takes a free one.
        check_secrets: Whether the operator may get Secrets, to warn of those that a resource names and that do not
            exist.
    """

    secret: str
    configuration: str
    names: tuple[str, ...]
    port: int = 9443
    check_secrets: bool = False


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """How this process runs, and what the controllers need to know of the installation.

    Attributes:
        installation: Images and defaults, for the plans.
        manager: Workers, resync and drain.
        kubeconfig: The cluster; None for the one that the pod runs in.
        identity: Name of this process in the Lease and in Events; the pod's name.
        leader_elect: False only where there is surely one process.
        lease_name: Name of the Lease in `installation.operator_namespace`.
        host: Address of the two servers below.
        health_port: Port of /livez and /readyz; 0 takes a free one.
        metrics_port: Port of /metrics; 0 takes a free one.
        silence_limit: Seconds without any word from the API server about a watched type that fail /livez.
        log_level: debug, info, warning or error.
        log_format: json, or console for a person.
        webhook: None for none.
    """

    installation: Settings
    manager: ManagerOptions
    kubeconfig: Path | None
    identity: str
    leader_elect: bool = True
    lease_name: str = "headrace-operator"
    host: str = "0.0.0.0"
    health_port: int = 8081
    metrics_port: int = 8080
    silence_limit: float = 360.0
    log_level: str = "info"
    log_format: Literal["json", "console"] = "json"
    webhook: WebhookSettings | None = None


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str
    default: str
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.removeprefix("HEADRACE_").lower().replace("_", "-")

    @property
    def field(self) -> str:
        return self.name.removeprefix("HEADRACE_").lower()


_INSTALLATION = Settings()
_STORAGE = StorageSettings()
_MANAGER = ManagerOptions()
_VARIABLES = (
    _Variable("HEADRACE_KUBECONFIG", "", "kubeconfig; by default KUBECONFIG, else the cluster that this pod runs in"),
    _Variable("HEADRACE_NAMESPACE", "", "namespace of the operator and its Lease; by default POD_NAMESPACE"),
    _Variable("HEADRACE_IDENTITY", "", "name of this process in the Lease; by default POD_NAME, else the host name"),
    _Variable("HEADRACE_LEADER_ELECT", "true", "false where there is surely one process (development)"),
    _Variable("HEADRACE_LEASE_NAME", "headrace-operator", "name of the Lease"),
    _Variable("HEADRACE_HOST", "0.0.0.0", "address of the health and metrics servers"),
    _Variable("HEADRACE_HEALTH_PORT", "8081", "port of /livez and /readyz"),
    _Variable("HEADRACE_METRICS_PORT", "8080", "port of /metrics"),
    _Variable("HEADRACE_SILENCE_LIMIT", "360", "seconds without a word about a watched type that fail /livez"),
    _Variable("HEADRACE_WEBHOOK_SECRET", "", "Secret with the admission webhook's certificate; empty: no webhook"),
    _Variable("HEADRACE_WEBHOOK_CONFIGURATION", "", "webhook configuration whose caBundle is kept; empty: not ours"),
    _Variable("HEADRACE_WEBHOOK_NAMES", "localhost", "names and addresses of the webhook, separated by commas"),
    _Variable("HEADRACE_WEBHOOK_PORT", "9443", "port of the webhook"),
    _Variable("HEADRACE_WEBHOOK_CHECK_SECRETS", "false", "true where the operator may get Secrets, to warn of missing"),
    _Variable("HEADRACE_LOG_LEVEL", "info", "debug, info, warning or error"),
    _Variable("HEADRACE_LOG_FORMAT", "json", "json, or console for a person"),
    _Variable("HEADRACE_WORKERS", str(_MANAGER.workers), "reconciles of one kind at a time"),
    _Variable("HEADRACE_CONCURRENCY", str(_MANAGER.concurrency), "writes to the API server at a time"),
    _Variable("HEADRACE_RESYNC", f"{_MANAGER.resync:g}", "seconds between two looks at what nothing happens to"),
    _Variable("HEADRACE_DRAIN", f"{_MANAGER.drain:g}", "seconds that reconciles have to finish at the end"),
    _Variable("HEADRACE_TRAINER_IMAGE", _INSTALLATION.trainer_image, "image of workers that name none"),
    _Variable("HEADRACE_SERVING_IMAGE", _INSTALLATION.serving_image, "image of routers and predictors"),
    _Variable(
        "HEADRACE_SERVING_TORCH_IMAGE", _INSTALLATION.serving_torch_image, "image of predictors of PyTorch models"
    ),
    _Variable("HEADRACE_SERVING_PMML_IMAGE", _INSTALLATION.serving_pmml_image, "image of predictors of PMML"),
    _Variable("HEADRACE_IMAGE_PULL_POLICY", _INSTALLATION.image_pull_policy, "imagePullPolicy of both"),
    _Variable("HEADRACE_CLUSTER_DOMAIN", _INSTALLATION.cluster_domain, "DNS suffix of the cluster"),
    _Variable(
        "HEADRACE_GANG_SCHEDULING", _INSTALLATION.gang_scheduling, "Auto (the cluster, else Queue), Queue or None"
    ),
    _Variable("HEADRACE_QUEUE_WEIGHTS", "", "shares of the queue, as namespace=weight,…; those not named have 1"),
    _Variable("HEADRACE_ONLINE_STORE_URI", "", "default online store, with its credentials; only as a variable"),
    _Variable("HEADRACE_STORAGE_URI", _STORAGE.uri, "default storage: every resource gets <uri>/<namespace>/<name>"),
    _Variable("HEADRACE_STORAGE_ENDPOINT", _STORAGE.endpoint, "its S3 endpoint; empty: AWS"),
    _Variable("HEADRACE_STORAGE_REGION", _STORAGE.region, "its S3 region"),
    _Variable("HEADRACE_STORAGE_ACCESS_KEY_ID", "", "its access key id"),
    _Variable("HEADRACE_STORAGE_SECRET_ACCESS_KEY", "", "its secret; only as a variable, flags show in process lists"),
)
_SECRETS = ("HEADRACE_STORAGE_SECRET_ACCESS_KEY", "HEADRACE_ONLINE_STORE_URI")


def load_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> OperatorSettings:
    """Settings from flags, then the environment, then defaults.

    Raises:
        SystemExit: A flag is unknown, or a value is not what it should be; the message names it.
    """
    parser = argparse.ArgumentParser(
        prog="operator",
        description="The Headrace operator. Every setting is an environment variable; flags override.",
    )
    for variable in _VARIABLES:
        if variable.name not in _SECRETS:
            parser.add_argument(
                variable.flag, metavar="VALUE", help=f"{variable.help} [{variable.name}, default: {variable.default!r}]"
            )
    flags = vars(parser.parse_args(arguments))
    values = {
        variable.field: flags.get(variable.field) or environment.get(variable.name) or variable.default
        for variable in _VARIABLES
    }
    for field, fallback in (("kubeconfig", "KUBECONFIG"), ("namespace", "POD_NAMESPACE"), ("identity", "POD_NAME")):
        values[field] = values[field] or environment.get(fallback, "")
    try:
        return _settings(values)
    except ValueError as error:
        parser.error(str(error))


def _weights(text: str) -> tuple[tuple[str, float], ...]:
    """`namespace=weight,…` as pairs.

    Raises:
        ValueError: it is something else.
    """
    found: list[tuple[str, float]] = []
    for part in filter(None, text.split(",")):
        namespace, _, weight = part.strip().partition("=")
        try:
            number = float(weight)
        except ValueError:
            number = 0.0
        if not namespace or not 0 < number <= 1_000_000:
            raise ValueError(f"HEADRACE_QUEUE_WEIGHTS has {part!r}; write namespace=weight with a weight above 0")
        found.append((namespace, number))
    return tuple(found)


def _settings(values: Mapping[str, str]) -> OperatorSettings:
    if values["log_format"] not in ("json", "console"):
        raise ValueError(f"HEADRACE_LOG_FORMAT is {values['log_format']!r}; it is json or console")
    if values["log_level"] not in ("debug", "info", "warning", "error"):
        raise ValueError(f"HEADRACE_LOG_LEVEL is {values['log_level']!r}; it is debug, info, warning or error")
    if values["gang_scheduling"] not in ("Auto", "Queue", "None"):
        raise ValueError(f"HEADRACE_GANG_SCHEDULING is {values['gang_scheduling']!r}; it is Auto, Queue or None")
    identity = values["identity"] or socket.gethostname()
    return OperatorSettings(
        installation=Settings(
            trainer_image=values["trainer_image"],
            serving_image=values["serving_image"],
            serving_torch_image=values["serving_torch_image"],
            serving_pmml_image=values["serving_pmml_image"],
            image_pull_policy=values["image_pull_policy"],
            cluster_domain=values["cluster_domain"],
            gang_scheduling=values["gang_scheduling"],
            queue_weights=_weights(values["queue_weights"]),
            online_store_uri=values["online_store_uri"],
            operator_namespace=values["namespace"] or _pod_namespace(),
            storage=StorageSettings(
                uri=values["storage_uri"].rstrip("/"),
                endpoint=values["storage_endpoint"],
                region=values["storage_region"],
                access_key_id=values["storage_access_key_id"],
                secret_access_key=values["storage_secret_access_key"],
            ),
        ),
        manager=ManagerOptions(
            workers=int(_number(values, "workers")),
            concurrency=int(_number(values, "concurrency")),
            resync=_number(values, "resync"),
            drain=_number(values, "drain"),
            identity=identity,
        ),
        kubeconfig=Path(values["kubeconfig"]) if values["kubeconfig"] else None,
        identity=identity,
        leader_elect=_boolean(values, "leader_elect"),
        lease_name=values["lease_name"],
        host=values["host"],
        health_port=int(_number(values, "health_port", least=0)),
        metrics_port=int(_number(values, "metrics_port", least=0)),
        silence_limit=_number(values, "silence_limit"),
        log_level=values["log_level"],
        log_format="console" if values["log_format"] == "console" else "json",
        webhook=_webhook(values) if values["webhook_secret"] else None,
    )


def _webhook(values: Mapping[str, str]) -> WebhookSettings:
    names = tuple(name.strip() for name in values["webhook_names"].split(",") if name.strip())
    if not names:
        raise ValueError("HEADRACE_WEBHOOK_NAMES is empty; name what the API server reaches the webhook by")
    return WebhookSettings(
        secret=values["webhook_secret"],
        configuration=values["webhook_configuration"],
        names=names,
        port=int(_number(values, "webhook_port", least=0)),
        check_secrets=_boolean(values, "webhook_check_secrets"),
    )


def _number(values: Mapping[str, str], field: str, least: float = 1) -> float:
    try:
        number = float(values[field])
    except ValueError:
        number = least - 1
    if number < least:
        raise ValueError(f"HEADRACE_{field.upper()} is {values[field]!r}; it is a number of at least {least:g}")
    return number


def _boolean(values: Mapping[str, str], field: str) -> bool:
    value = values[field].lower()
    if value not in ("true", "false"):
        raise ValueError(f"HEADRACE_{field.upper()} is {values[field]!r}; it is true or false")
    return value == "true"


def _pod_namespace() -> str:
    return _POD_NAMESPACE.read_text().strip() if _POD_NAMESPACE.exists() else _INSTALLATION.operator_namespace


def environment_settings(arguments: Sequence[str]) -> OperatorSettings:
    """`load_settings` with this process's environment."""
    return load_settings(arguments, os.environ)
