"""The chart with an S3 that it does not bring: what the operator is told, and what a job's workers get from it."""

from __future__ import annotations

import base64
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controllers.runtime.settings import Settings
from tests.api.helm import Helm
from tests.api.rest import Rest
from tests.api.test_trainingjob_life import Stage, operator, stage, until

__all__ = ["stage"]

SYSTEM = "/api/v1/namespaces/headrace-system"
APPS = "/apis/apps/v1/namespaces/headrace-system"
KEYS = {"AWS_ACCESS_KEY_ID": "team-key", "AWS_SECRET_ACCESS_KEY": "team-secret"}
SETTINGS = Path(__file__).parents[2] / "operator" / "settings.py"


def decoded(secret: dict[str, Any]) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


@pytest.fixture(scope="module")
def external(control_plane: Path, helm: Helm) -> Iterator[Rest]:
    """The release that had the embedded store, upgraded to an external one; embedded again afterwards."""
    rest = Rest(control_plane)
    secret = {"metadata": {"name": "team-s3"}, "stringData": KEYS}
    assert rest("POST", f"{SYSTEM}/secrets", secret).accepted
    assert rest("GET", f"{APPS}/statefulsets/headrace-s3").accepted
    helm.install(
        "storage.uri=s3://lake/team",
        "storage.endpoint=https://s3.example:9000",
        "storage.region=eu-west-3",
        "storage.existingSecret=team-s3",
    )
    yield rest
    helm("rollback", "headrace")


def settings_of_the_operator(rest: Rest) -> Settings:
    """What the operator's program makes of the environment that the kubelet would give it."""
    pod = rest("GET", f"{APPS}/deployments/headrace-operator").body["spec"]["template"]["spec"]
    environment = {"POD_NAME": "operator-0", "POD_NAMESPACE": "headrace-system"}
    for variable in pod["containers"][0]["env"]:
        source = variable.get("valueFrom", {}).get("secretKeyRef")
        if source:
            environment[variable["name"]] = decoded(rest("GET", f"{SYSTEM}/secrets/{source['name']}").body)[
                source["key"]
            ]
        elif "value" in variable:
            environment[variable["name"]] = variable["value"]
    # operator/ is a program, not a package, so its modules are loaded by path.
    spec = importlib.util.spec_from_file_location("operator_settings_of_the_chart", SETTINGS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    installation: Settings = module.load_settings([], environment).installation
    return installation


async def test_jobs_that_name_no_storage_get_the_external_one(
    external: Rest, control_plane: Path, stage: Stage
) -> None:
    settings = settings_of_the_operator(external)
    async with operator(control_plane, settings):
        stage.create("digits")
        await until(lambda: len(stage.pods()) == 3, "three workers")
    (worker,) = stage.pods()["digits-worker-0"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value") for variable in worker["env"]}
    assert environment["HEADRACE_STORAGE_URI"] == f"s3://lake/team/{stage.namespace}/digits"
    assert {"secretRef": {"name": "headrace-storage"}}.items() <= worker["envFrom"][0].items()
    copied = external("GET", f"/api/v1/namespaces/{stage.namespace}/secrets/headrace-storage").body
    assert decoded(copied) == KEYS | {"AWS_ENDPOINT_URL": "https://s3.example:9000", "AWS_REGION": "eu-west-3"}


def test_the_embedded_store_goes_and_its_data_stays(external: Rest) -> None:
    for gone in (f"{APPS}/statefulsets/headrace-s3", f"{SYSTEM}/services/headrace-s3", f"{SYSTEM}/secrets/headrace-s3"):
        assert external("GET", gone).status == 404, gone
    assert external("GET", f"{SYSTEM}/persistentvolumeclaims/headrace-s3").accepted
