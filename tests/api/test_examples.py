"""What examples/ shows is accepted as it is, and what GitOps controllers would render is too."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.tools import tool
from headrace.api import FeatureSet, InferenceService, TrainingJob

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MODELS = {"TrainingJob": TrainingJob, "InferenceService": InferenceService, "FeatureSet": FeatureSet}
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def kubectl(control_plane: Path) -> Callable[..., str]:
    def run(*arguments: str, stdin: str | None = None) -> str:
        command = [str(tool("kubectl")), "--kubeconfig", str(control_plane), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, input=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def documents(path: Path) -> list[Manifest]:
    return [item for item in yaml.safe_load_all(path.read_text()) if item]


def test_there_are_examples() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.yaml")}
    assert {"trainingjob-digits", "trainingjob-script", "inferenceservice-digits"} <= names


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_accepted_by_a_strict_server(kubectl: Callable[..., str], path: Path) -> None:
    kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", str(path))
    for item in documents(path):
        if item["kind"] in MODELS:
            MODELS[item["kind"]].model_validate(item)


def test_the_manifests_of_the_readme_are_accepted_and_there_is_one_of_each_kind(kubectl: Callable[..., str]) -> None:
    shown = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for text in shown:
        kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert {yaml.safe_load(text)["kind"] for text in shown} == set(MODELS)


def test_the_script_of_the_example_is_python_that_the_job_names() -> None:
    config_map, job = documents(EXAMPLES / "trainingjob-script.yaml")
    source = job["spec"]["script"]["configMap"]
    assert source["name"] == config_map["metadata"]["name"]
    ast.parse(config_map["data"][source["key"]])


def test_the_service_serves_what_the_jobs_train() -> None:
    (service,) = documents(EXAMPLES / "inferenceservice-digits.yaml")
    jobs = {
        item["metadata"]["name"]
        for name in ("trainingjob-digits", "trainingjob-digits-comparison")
        for item in documents(EXAMPLES / f"{name}.yaml")
    }
    steps = [service["spec"]["predictor"], *service["spec"]["fallback"]]
    models = [step["model"]["storageUri"] for step in steps if "model" in step]
    assert {uri.split("/")[4] for uri in models} <= jobs


def test_the_gitops_folder_renders_to_what_the_server_takes(kubectl: Callable[..., str]) -> None:
    rendered = kubectl("kustomize", str(EXAMPLES / "gitops"))
    manifests = list(yaml.safe_load_all(rendered))
    assert sorted(item["kind"] for item in manifests) == ["InferenceService", "Namespace", "TrainingJob", "TrainingJob"]
    assert all(item["metadata"].get("namespace", "demo") == "demo" for item in manifests)
    (namespace,) = (item for item in manifests if item["kind"] == "Namespace")
    kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(namespace))
    kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=rendered)


@pytest.mark.parametrize("name", ["argocd", "flux"])
def test_gitops_controllers_are_pointed_at_folders_that_exist(name: str) -> None:
    paths = {
        path
        for item in documents(EXAMPLES / "gitops" / name / "headrace.yaml")
        for spec in [item["spec"]]
        for path in (spec.get("source", {}).get("path"), spec.get("path"), _chart(spec))
        if path
    }
    assert {path.removeprefix("./") for path in paths} == {"charts/headrace", "examples/gitops"}
    assert all((ROOT / path).is_dir() for path in paths)


def _chart(spec: Manifest) -> str | None:
    chart = spec.get("chart", {})
    return chart.get("spec", {}).get("chart") if isinstance(chart, dict) else None
