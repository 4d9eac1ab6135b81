"""What a plan needs to know of the installation it runs in; set by the chart, read once at start-up."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """The default storage of resources that name none.

    Attributes:
        uri: Folder under which every resource gets its own: `<uri>/<namespace>/<name>`.
        endpoint: AWS_ENDPOINT_URL of the store; empty for AWS itself and for other schemes.
        region: AWS_REGION.
        access_key_id: Key of the store, copied into the Secret `headrace-storage` of each namespace that uses it.
        secret_access_key: Its secret.
    """

    uri: str = "s3://headrace"
    endpoint: str = ""
    region: str = "us-east-1"
    access_key_id: str = ""
    secret_access_key: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """Images and defaults of this installation.

    Attributes:
        trainer_image: Image of workers that name none.
        serving_image: Image of routers and predictors.
        serving_torch_image: Image of predictors of PyTorch models.
        serving_pmml_image: Image of predictors of PMML.
        cluster_domain: DNS suffix of the cluster.
        gang_scheduling: Who sees to it that all workers of a job start or none. Auto: the cluster's own scheduler where
            it can, else the queue; Queue: always the queue; None: nobody.
        queue_weights: Namespaces to which the queue owes another share than 1, with it.
    """

    trainer_image: str = "headrace/trainer:0.1.0"
    serving_image: str = "headrace/serving:0.1.0"
    serving_torch_image: str = "headrace/serving-torch:0.1.0"
    serving_pmml_image: str = "headrace/serving-pmml:0.1.0"
    image_pull_policy: str = "IfNotPresent"
    cluster_domain: str = "cluster.local"
    gang_scheduling: str = "Auto"
    queue_weights: tuple[tuple[str, float], ...] = ()
    online_store_uri: str = field(default="", repr=False)
    operator_namespace: str = "headrace-system"
    storage: StorageSettings = StorageSettings()
