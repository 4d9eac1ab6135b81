"""TrainingJobs with parameter servers: every pod is replaced alone, and what it costs is counted once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controllers.runtime.objects import Manifest, by_name
from controllers.runtime.plan import Plan
from controllers.trainingjob import served, servers
from controllers.trainingjob.observed import Observed
from headrace.api.trainingjob import TrainingJob
from tests.unit.trainingjob.worlds import NOW, SETTINGS, ago, ended, job, node, running, terminating

NODES = [node(f"node-{zone}", zone) for zone in "abc"]
TOPOLOGY = {"type": "ParameterServer", "parameterServer": {"servers": 2}}


def served_job(status: Mapping[str, Any] | None = None, **spec: Any) -> TrainingJob:
    return job(status, **{"topology": TOPOLOGY, **spec})


def worker(of: TrainingJob, index: int, *, restarts: int = 0) -> Manifest:
    return _made(servers.worker(of, SETTINGS, index, attempt=1, restarts=restarts, zones=True), f"worker-{index}")


def server(of: TrainingJob, index: int, *, restarts: int = 0) -> Manifest:
    return _made(servers.server(of, SETTINGS, index, attempt=1, restarts=restarts, zones=True), f"server-{index}")


def _made(manifest: Manifest, uid: str) -> Manifest:
    manifest["metadata"] |= {"uid": uid, "creationTimestamp": ago(60)}
    manifest["status"] = {"phase": "Pending", "conditions": []}
    return manifest


def everyone(of: TrainingJob) -> dict[str, Manifest]:
    pods = [*(running(worker(of, index)) for index in range(3)), *(running(server(of, index)) for index in range(2))]
    return by_name(pods)


def planned(of: TrainingJob, pods: Mapping[str, Manifest]) -> Plan:
    nodes = by_name(NODES)
    return served.plan(of, Observed(dict(pods), nodes, NODES), NOW, SETTINGS)


def made(plan: Plan) -> list[str]:
    return [apply.manifest["metadata"]["name"] for apply in plan.applies if apply.manifest["kind"] == "Pod"]


def removed(plan: Plan) -> list[str]:
    return [delete.key.name for delete in plan.deletes]


def ready(plan: Plan) -> dict[str, Any]:
    assert plan.status is not None
    found: dict[str, Any] = next(item for item in plan.status["conditions"] if item["type"] == "Ready")
    return found


def env(pod: Manifest) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in pod["spec"]["containers"][0]["env"]}


def test_servers_and_workers_are_made_together_and_know_each_other() -> None:
    plan = planned(served_job(), {})
    assert made(plan) == [
        "digits-server-0",
        "digits-server-1",
        "digits-worker-0",
        "digits-worker-1",
        "digits-worker-2",
    ]
    pods = {item.manifest["metadata"]["name"]: item.manifest for item in plan.applies}
    addresses = ",".join(f"digits-server-{i}.digits-servers.team.svc.cluster.local:29500" for i in range(2))
    assert env(pods["digits-worker-1"])["HEADRACE_SERVERS"] == addresses
    assert env(pods["digits-worker-1"])["HEADRACE_ROLE"] == "worker"
    told = env(pods["digits-server-1"])
    assert (told["HEADRACE_SERVERS"], told["HEADRACE_SERVER_INDEX"], told["HEADRACE_WORKERS"]) == (addresses, "1", "3")
    assert told["HEADRACE_ROLE"] == "server"
    assert "HEADRACE_CLASSIFIER" not in told
    assert pods["digits-servers"]["spec"]["selector"].items() <= pods["digits-server-1"]["metadata"]["labels"].items()
    assert (
        not pods["digits-servers"]["spec"]["selector"].items() <= pods["digits-worker-1"]["metadata"]["labels"].items()
    )
    assert pods["digits-server-0"]["spec"]["subdomain"] == "digits-servers"
    spread = pods["digits-server-0"]["spec"]["topologySpreadConstraints"][0]
    assert spread["labelSelector"]["matchLabels"].items() <= pods["digits-server-0"]["metadata"]["labels"].items()


def test_a_server_needs_no_gpu_and_may_have_resources_of_its_own() -> None:
    gpu = served_job(gpu={"count": 1}, resources={"requests": {"cpu": "2"}})
    container = server(gpu, 0)["spec"]["containers"][0]
    assert container["resources"] == {"requests": {"cpu": "2"}}
    topology = {"type": "ParameterServer", "parameterServer": {"resources": {"requests": {"memory": "8Gi"}}}}
    container = server(served_job(topology=topology), 0)["spec"]["containers"][0]
    assert container["resources"] == {"requests": {"memory": "8Gi"}}


def test_all_running_is_ready_and_says_how_many_servers_there_are() -> None:
    of = served_job()
    plan = planned(of, everyone(of))
    assert ready(plan)["status"] == "True"
    assert plan.status is not None
    assert plan.status["servers"] == {"total": 2, "ready": 2, "summary": "2/2"}
    assert plan.status["workers"]["ready"] == 3
    assert made(plan) == []


def test_a_failed_worker_is_recorded_first_then_removed_alone_then_made_anew() -> None:
    of = served_job()
    pods = everyone(of)
    ended(pods["digits-worker-1"], 1, message="boom")
    first = planned(of, pods)
    assert (removed(first), made(first)) == ([], [])
    assert first.status is not None
    assert (first.status["restarts"], first.status["removing"]) == (1, ["worker-1"])
    assert first.status["attempt"] == 1
    assert "boom. It is replaced, the others go on; this is restart 1" in ready(first)["message"]

    of = served_job(first.status)
    second = planned(of, pods)
    assert removed(second) == ["digits-worker-1"]
    assert second.status is None or second.status["restarts"] == 1, "counted once"

    del pods["digits-worker-1"]
    third = planned(of, pods)
    assert made(third) == ["digits-worker-1"]
    again = next(item.manifest for item in third.applies if item.manifest["metadata"]["name"] == "digits-worker-1")
    assert again["metadata"]["annotations"]["headrace.dev/restarts"] == "1"


def test_a_lost_server_is_replaced_and_costs_no_restart() -> None:
    of = served_job()
    pods = everyone(of)
    terminating(pods["digits-server-0"])
    first = planned(of, pods)
    assert first.status is not None
    assert (first.status["restarts"], first.status["removing"]) == (0, ["server-0"])
    assert ready(first)["reason"] == "ServerDeleted"
    assert first.status["servers"]["ready"] == 1
    del pods["digits-server-0"]
    assert made(planned(served_job(first.status), pods)) == ["digits-server-0"]


def test_the_job_succeeds_with_its_workers_and_then_the_servers_leave() -> None:
    of = served_job()
    pods = everyone(of)
    ended(pods["digits-worker-1"], 0)
    assert removed(planned(of, pods)) == [], "one that finished early is left alone"
    for index in (0, 2):
        ended(pods[f"digits-worker-{index}"], 0)
    first = planned(of, pods)
    assert first.status is not None
    assert (ready(first)["status"], ready(first)["reason"]) == ("True", "Succeeded")
    assert removed(first) == []
    second = planned(served_job(first.status), pods)
    assert removed(second) == ["digits-server-0", "digits-server-1"]
    assert second.status is None


def test_a_suspended_job_holds_nothing_and_goes_on_with_new_pods() -> None:
    of = served_job(suspend=True)
    pods = everyone(of)
    first = planned(of, pods)
    assert first.status is not None
    assert (ready(first)["reason"], first.status["attempt"], removed(first)) == ("Suspended", 2, [])
    second = planned(served_job(first.status, suspend=True), pods)
    assert len(removed(second)) == 5
    assert [delete.grace_period_seconds for delete in second.deletes if "server" in delete.key.name] == [None, None], (
        "they save"
    )
    assert made(planned(served_job(first.status, suspend=True), {})) == []
    third = planned(served_job(first.status), {})
    assert len(made(third)) == 5
    again = next(item.manifest for item in third.applies if item.manifest["metadata"]["name"] == "digits-server-0")
    assert again["metadata"]["labels"]["headrace.dev/attempt"] == "2"


def test_a_configuration_that_cannot_work_ends_the_job() -> None:
    of = served_job()
    pods = everyone(of)
    ended(pods["digits-server-1"], 78, message="error: storage.uri: no such bucket")
    plan = planned(of, pods)
    assert (ready(plan)["reason"], "no such bucket" in ready(plan)["message"]) == ("InvalidConfiguration", True)


def test_too_many_failures_end_the_job() -> None:
    status = {"attempt": 1, "restarts": 2, "recentRestarts": [ago(30), ago(20)]}
    of = served_job(status, restartPolicy={"maxRestarts": 2})
    pods = everyone(of)
    ended(pods["digits-worker-0"], 1)
    assert ready(planned(of, pods))["reason"] == "RestartLimitReached"


def test_a_pod_that_fails_again_and_again_is_made_after_a_pause() -> None:
    status = {"attempt": 1, "restarts": 3, "recentRestarts": [ago(50), ago(30), ago(1)]}
    of = served_job(status)
    pods = everyone(of)
    del pods["digits-worker-0"]
    plan = planned(of, pods)
    assert made(plan) == []
    assert plan.requeue_after is not None
    assert plan.requeue_after.total_seconds() <= 3
