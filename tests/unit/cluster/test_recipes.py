"""The parts of the cluster's recipe that live in different files agree, and its small programs do what they say."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster import features, golang, host, images, kind, network, nodeimage
from cluster.tools import KUBERNETES_VERSION, NAMES, tool


def images_of(manifest: str) -> set[str]:
    return set(re.findall(r"image: (\S+)", (kind.MANIFESTS / manifest).read_text()))


def test_manifests_name_the_images_that_the_node_image_carries() -> None:
    assert images_of("kube-router.yaml") == {nodeimage.ROUTER_IMAGE}
    assert images_of("metrics-server.yaml") == {nodeimage.METRICS_SERVER_IMAGE}
    assert images_of("storage.yaml") == {nodeimage.LOCAL_PATH_IMAGE, nodeimage.HELPER_IMAGE}


def test_the_routes_service_knows_the_pod_network() -> None:
    assert network.POD_SUBNET in (nodeimage.NODE_FILES / "headrace-routes").read_text()


def test_the_go_module_of_kubernetes_pins_the_version_of_the_cluster() -> None:
    text = (golang.KUBERNETES / "go.mod").read_text()
    staging = KUBERNETES_VERSION.replace("v1.", "v0.")
    assert f"k8s.io/kubernetes {KUBERNETES_VERSION}" in text
    assert set(re.findall(r"=> k8s\.io/\S+ (\S+)", text)) == {staging}


def test_the_kind_configuration_has_a_worker_in_each_zone_and_gang_scheduling(tmp_path: Path) -> None:
    config = yaml.safe_load(yaml.safe_dump(kind.configuration(kind.State("offline", "node:1"), tmp_path)))
    zones = [node["labels"]["topology.kubernetes.io/zone"] for node in config["nodes"] if node["role"] == "worker"]
    assert zones == ["a", "b", "c"]
    assert config["featureGates"] == features.FEATURE_GATES
    assert config["networking"]["disableDefaultCNI"] is True


def test_every_image_folder_has_a_recipe_and_every_recipe_its_folder() -> None:
    folders = {recipe.folder or name for name, recipe in images.RECIPES.items()}
    assert {path.parent.name for path in (images.ROOT / "images").glob("*/Dockerfile")} == folders


def test_every_target_is_a_stage_of_its_dockerfile() -> None:
    for name, recipe in images.RECIPES.items():
        text = (images.ROOT / "images" / (recipe.folder or name) / "Dockerfile").read_text()
        assert not recipe.target or f" AS {recipe.target}\n" in text


def test_an_unknown_tool_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RuntimeError, match="no tool is called kubctl") as error:
        tool("kubctl")
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize(("flag", "file"), [("--bundle", "config.json"), ("--process", "")])
def test_the_runc_wrapper_asks_for_every_capability_but_the_missing_one(tmp_path: Path, flag: str, file: str) -> None:
    runc = tmp_path / "runc"
    runc.write_text('#!/bin/sh\necho "$@"\n')
    runc.chmod(0o755)
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(host.RUNC_WRAPPER.format(runc=runc))
    description = tmp_path / (file or "process.json")
    bounding = ["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_SYS_TIME"]
    description.write_text(json.dumps({"bounding": bounding, "last": bounding[:2]}, separators=(",", ":")))
    argument = str(tmp_path if file else description)
    done = subprocess.run(["sh", wrapper, "create", flag, argument, "id"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["create", flag, argument, "id"]
    assert json.loads(description.read_text()) == {"bounding": ["CAP_CHOWN", "CAP_SYS_TIME"], "last": ["CAP_CHOWN"]}
