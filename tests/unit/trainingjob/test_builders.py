"""The children as torchrun, the restricted Pod Security Standard and the scheduler need them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controllers.runtime.namespace import namespace_objects, storage_secret
from controllers.runtime.objects import ROLE_BINDING, SECRET, SERVICE_ACCOUNT, Manifest
from controllers.runtime.settings import Settings, StorageSettings
from controllers.trainingjob import builders
from tests.unit.trainingjob.worlds import SETTINGS, job

SCRIPT: dict[str, Any] = {"script": {"configMap": {"name": "code", "key": "train.py"}}}


def worker(index: int = 0, zones: bool = True, attempt: int = 1, **spec: Any) -> Manifest:
    return builders.worker(job(**spec), SETTINGS, index, attempt=attempt, restarts=0, zones=zones)


def container(made: Manifest) -> Manifest:
    found: Manifest = made["spec"]["containers"][0]
    return found


def env(made: Manifest) -> dict[str, str]:
    return {item["name"]: item.get("value", "(reference)") for item in container(made)["env"]}


def test_torchruns_environment() -> None:
    """The variables of https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables."""
    made = env(worker(2, script={"path": "/app/train.py"}, image="team/app:1"))
    expected = {
        "MASTER_PORT": "29500", "WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": "2", "PET_NNODES": "3", "PET_NODE_RANK": "2", "PET_NPROC_PER_NODE": "1",
    }  # fmt: skip
    assert {name: made[name] for name in expected} == expected
    assert made["MASTER_ADDR"] == made["PET_MASTER_ADDR"]


def test_an_agent_gives_torchruns_environment_to_the_processes_that_it_starts() -> None:
    """The API server keeps track of each variable of each pod, so what an agent sets itself is not in the pod."""
    own, elsewhere = env(worker(1)), env(worker(1, script={"path": "/app/train.py"}, image="team/app:1"))
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "PET_NNODES"} & set(own)
    assert json.loads(own["HEADRACE_AGENT"])["coordinator"] == elsewhere["MASTER_ADDR"]


def test_rank_0_has_the_name_that_the_others_look_for() -> None:
    rank_0, service = worker(0), builders.service(job())
    host = f"{rank_0['spec']['hostname']}.{rank_0['spec']['subdomain']}.team.svc.cluster.local"
    assert json.loads(env(worker(1))["HEADRACE_AGENT"])["coordinator"] == host
    assert service["metadata"]["name"] == rank_0["spec"]["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= rank_0["metadata"]["labels"].items()


def test_a_lone_worker_needs_no_name() -> None:
    made = worker(numWorkers=1)
    assert json.loads(env(made)["HEADRACE_AGENT"])["coordinator"] == "127.0.0.1"
    assert "subdomain" not in made["spec"]
    assert "topologySpreadConstraints" not in made["spec"]


def test_several_gpus_per_worker_start_one_process_each() -> None:
    made = worker(
        1, gpu={"count": 4, "product": "NVIDIA-L4"}, script={"configMap": {"name": "code", "key": "train.py"}}
    )
    assert container(made)["command"][:3] == ["python", "-m", "headrace.training.agent"]
    assert json.loads(env(made)["HEADRACE_AGENT"])["processes"] == 4
    elsewhere = worker(gpu={"count": 4}, script={"path": "/app/train.py"}, image="team/app:1")
    assert container(elsewhere)["command"][:3] == ["python", "-m", "torch.distributed.run"]
    assert "RANK" not in env(elsewhere)
    assert "HEADRACE_AGENT" not in env(elsewhere)
    assert env(elsewhere)["PET_NPROC_PER_NODE"] == "4"
    assert made["metadata"]["labels"]["headrace.dev/rank"] == "4"
    assert container(made)["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert made["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    assert made["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


AGENT = ["python", "-m", "headrace.training.agent", "--"]


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        ({}, [*AGENT, "python", "-m", "headrace.training", "classifier"]),
        (
            {"script": {"configMap": {"name": "code", "key": "train.py"}}},
            [*AGENT, "python", "/etc/headrace/script/train.py"],
        ),
        (
            {"script": {"git": {"repo": "https://git.example/t.git", "path": "a/train.py"}}},
            [*AGENT, "python", "/workspace/repository/a/train.py"],
        ),
        ({"script": {"path": "/app/train.py"}, "image": "team/app:1"}, ["python", "/app/train.py"]),
        ({"command": ["./run", "fast"], "image": "team/app:1"}, ["./run", "fast"]),
    ],
)
def test_what_a_worker_runs(spec: dict[str, Any], command: list[str]) -> None:
    assert container(worker(**spec))["command"] == command


def test_a_script_from_a_config_map_is_mounted_read_only() -> None:
    made = worker(script={"configMap": {"name": "code", "key": "train.py"}}, args=["--fast"])
    assert {"name": "script", "mountPath": "/etc/headrace/script", "readOnly": True} in container(made)["volumeMounts"]
    volume = next(item for item in made["spec"]["volumes"] if item["name"] == "script")
    assert volume["configMap"] == {"name": "code", "items": [{"key": "train.py", "path": "train.py"}]}
    assert container(made)["args"] == ["--fast"]


def test_a_script_from_git_is_cloned_first_with_credentials_from_the_secret() -> None:
    git = {"repo": "https://git.example/t.git", "ref": "v1", "path": "train.py", "secretRef": {"name": "git"}}
    made = worker(script={"git": git}, image="team/torch:1")
    clone = made["spec"]["initContainers"][0]
    assert clone["image"] == SETTINGS.trainer_image
    values = {item["name"]: item for item in clone["env"]}
    assert (values["GIT_REPO"]["value"], values["GIT_REF"]["value"]) == ("https://git.example/t.git", "v1")
    assert values["GIT_PASSWORD"]["valueFrom"]["secretKeyRef"] == {"name": "git", "key": "password"}
    assert container(made)["workingDir"] == "/workspace/repository"


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"image": "team/app:1", "command": ["run"]},
        {"script": {"git": {"repo": "https://git.example/t.git", "path": "train.py"}}},
    ],
)
def test_every_container_keeps_to_the_restricted_pod_security_standard(spec: dict[str, Any]) -> None:
    """The rules of https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    pod_spec = worker(**spec)["spec"]
    assert pod_spec["securityContext"]["runAsNonRoot"] is True
    assert pod_spec["securityContext"]["runAsUser"] > 0
    assert pod_spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = (
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    )
    assert all(set(volume) - {"name"} <= set(allowed) for volume in pod_spec["volumes"])
    for item in [*pod_spec["containers"], *pod_spec.get("initContainers", [])]:
        assert item["securityContext"]["allowPrivilegeEscalation"] is False
        assert item["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert item["securityContext"]["readOnlyRootFilesystem"] is True
        assert {"name": "tmp", "mountPath": "/tmp"} in item["volumeMounts"]


@pytest.mark.parametrize(
    ("resources", "gpus", "threads"),
    [
        ({}, None, "1"),
        ({"requests": {"cpu": "4"}}, None, "4"),
        ({"requests": {"cpu": "1"}, "limits": {"cpu": "3500m"}}, None, "3"),
        ({"limits": {"cpu": "250m"}}, None, "1"),
        ({"limits": {"cpu": 16}}, 4, "4"),
    ],
)
def test_threads_follow_the_cpus(resources: Any, gpus: int | None, threads: str) -> None:
    gpu: dict[str, Any] = {"gpu": {"count": gpus}} if gpus else {}
    assert env(worker(resources=resources, **gpu))["OMP_NUM_THREADS"] == threads


def test_spread_is_a_hard_constraint_over_zones_that_the_pod_may_use() -> None:
    constraint = worker(attempt=2)["spec"]["topologySpreadConstraints"][0]
    assert (constraint["topologyKey"], constraint["maxSkew"]) == ("topology.kubernetes.io/zone", 1)
    assert constraint["whenUnsatisfiable"] == "DoNotSchedule"
    assert constraint["nodeTaintsPolicy"] == "Honor"
    assert constraint["labelSelector"]["matchLabels"].items() <= worker(attempt=2)["metadata"]["labels"].items()
    assert constraint["labelSelector"]["matchLabels"]["headrace.dev/attempt"] == "2"


def test_without_zone_labels_there_is_nothing_to_spread_over() -> None:
    assert "topologySpreadConstraints" not in worker(zones=False)["spec"]


def test_pack_prefers_the_jobs_own_zone_and_keeps_peoples_affinity() -> None:
    own = {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {}}]}}
    made = worker(topology={"zoneSpread": "Pack"}, affinity={**own, "nodeAffinity": {"x": []}})
    terms = made["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [term["weight"] for term in terms] == [100, 1]
    assert terms[0]["podAffinityTerm"]["topologyKey"] == "topology.kubernetes.io/zone"
    assert made["spec"]["affinity"]["nodeAffinity"] == {"x": []}
    assert "topologySpreadConstraints" not in made["spec"]


def test_none_asks_for_nothing() -> None:
    made = worker(topology={"zoneSpread": "None"})["spec"]
    assert "topologySpreadConstraints" not in made
    assert "affinity" not in made


def test_peoples_options_reach_the_pod() -> None:
    made = worker(
        env=[{"name": "HOME", "value": "/data"}, {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "t"}}}],
        imagePullSecrets=[{"name": "registry"}],
        priorityClassName="batch",
        serviceAccountName="trainer",
        nodeSelector={"disk": "nvme"},
        tolerations=[{"key": "team", "operator": "Exists"}],
    )
    spec = made["spec"]
    assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("trainer", "batch")
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["nodeSelector"] == {"disk": "nvme"}
    assert spec["tolerations"] == [{"key": "team", "operator": "Exists"}]
    names = [item["name"] for item in container(made)["env"]]
    assert len(names) == len(set(names))
    assert env(made)["HOME"] == "/data"
    assert env(made)["TOKEN"] == "(reference)"


@pytest.mark.parametrize(
    ("storage", "uri", "secret"),
    [
        (None, "s3://headrace/team/digits", "headrace-storage"),
        ({"uri": "s3://mine/run"}, "s3://mine/run", "headrace-storage"),
        ({"uri": "s3://mine/run", "secretRef": {"name": "keys"}}, "s3://mine/run", "keys"),
    ],
)
def test_storage(storage: Any, uri: str, secret: str) -> None:
    made = worker(**({"storage": storage} if storage else {}))
    assert env(made)["HEADRACE_STORAGE_URI"] == uri
    assert container(made)["envFrom"] == [{"secretRef": {"name": secret}}]


def test_the_built_in_trainer_gets_its_configuration_as_json() -> None:
    assert json.loads(env(worker())["HEADRACE_CLASSIFIER"])["dataset"]["builtin"] == "Digits"


def test_what_a_namespace_needs_is_made_only_for_those_who_use_it() -> None:
    def types(account: bool, storage: bool) -> list[Any]:
        return [item.type for item in namespace_objects("team", SETTINGS, account=account, storage=storage)]

    assert types(True, True) == [SERVICE_ACCOUNT, ROLE_BINDING, SECRET]
    assert types(False, True) == [SECRET]
    assert types(False, False) == []
    assert not any(item.owned for item in namespace_objects("team", Settings()))


def test_the_storage_secret_leaves_out_what_is_not_set() -> None:
    secret = storage_secret(
        "team", StorageSettings(access_key_id="me", secret_access_key="x", endpoint="", region="eu")
    )
    assert secret["data"] == {"AWS_ACCESS_KEY_ID": "bWU=", "AWS_SECRET_ACCESS_KEY": "eA==", "AWS_REGION": "ZXU="}


def test_gpus_by_memory_interconnect_and_adapters() -> None:
    gpu = {
        "count": 8,
        "minMemory": "80Gi",
        "nvlink": "Require",
        "rdma": {"resourceName": "rdma/hca_shared_devices_a", "count": 2, "devices": "mlx5"},
    }
    own = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}, {}]
            }
        }
    }
    made = worker(numWorkers=2, gpu=gpu, affinity=own, **SCRIPT)
    assert container(made)["resources"]["limits"] == {"nvidia.com/gpu": "8", "rdma/hca_shared_devices_a": "2"}
    assert env(made)["NCCL_IB_HCA"] == "mlx5"
    affinity = made["spec"]["affinity"]
    enough = {"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["81919"]}
    terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [
        {"matchExpressions": [{"key": "pool", "operator": "Exists"}, enough]},
        {"matchExpressions": [enough]},
    ], "one of several terms has to hold, so each must ask for the memory"
    (near,) = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert near["topologyKey"] == "nvidia.com/gpu.clique"


def test_gpus_from_a_claim_are_not_asked_of_the_device_plugin() -> None:
    claims = [
        {"name": "gpus", "resourceClaimTemplateName": "eight-h100"},
        {"name": "switch", "resourceClaimName": "imex"},
    ]
    gpu = {"count": 8, "resourceClaim": "gpus"}
    made = worker(gpu=gpu, resourceClaims=claims, resources={"limits": {"cpu": 4}}, **SCRIPT)
    assert made["spec"]["resourceClaims"] == claims
    assert container(made)["resources"] == {"limits": {"cpu": "4"}, "claims": [{"name": "gpus"}, {"name": "switch"}]}
    assert json.loads(env(made)["HEADRACE_AGENT"])["processes"] == 8


def test_launcher_mpi_runs_the_command_on_worker_0_under_a_hostfile() -> None:
    spec: dict[str, Any] = {
        "launcher": "MPI",
        "command": ["mpirun", "train"],
        "image": "team/mpi:1",
        "gpu": {"count": 4},
    }
    made = worker(numWorkers=3, **spec)
    assert container(made)["command"][-2:] == ["mpirun", "train"]
    told = json.loads(env(made)["HEADRACE_MPI"])
    assert told["host"].startswith("digits-worker-*.digits-workers.")
    assert (told["workers"], told["slots"]) == (3, 4)
    assert "def parse_rsh" in env(made)["HEADRACE_MPI_AGENT"]
