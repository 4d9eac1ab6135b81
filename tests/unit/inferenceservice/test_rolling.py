"""Rolling updates: one Deployment at a time, and a remedy never waits for what it is to heal."""

from __future__ import annotations

from controllers.runtime.objects import DEPLOYMENT, POD, Manifest
from controllers.runtime.plan import Plan
from headrace.api import InferenceService
from tests.unit.inferenceservice.factory import (
    STATIC,
    WELL,
    Cluster,
    condition,
    plan,
    pod,
    service,
    terminated,
    well,
    workloads,
)

OLD = service()
NEW = service(
    router={"env": [{"name": "GENERATION", "value": "2"}]},
    predictor={"env": [{"name": "GENERATION", "value": "2"}]},
    generation=2,
)
NEW_ROUTER = service(fallback=[STATIC], generation=2)
NEW_PREDICTOR = service(predictor={"model": {"storageUri": "s3://models/v2"}}, generation=2)
NO_ROOM: Manifest = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no cpu"}


def applied(result: Plan) -> set[str]:
    """Names of the Deployments that the plan writes."""
    return {item.manifest["metadata"]["name"] for item in result.applies if item.type == DEPLOYMENT}


def surge(cluster: Cluster, of: InferenceService, component: str, **how: object) -> None:
    """The first pod of a new revision beside those of the old."""
    workload = workloads(of)[component]
    cluster.put(POD, pod(workload, f"{workload.name}-new", **how))  # type: ignore[arg-type]


def begun(of: InferenceService) -> Cluster:
    """A service that was well, after the first plan of a new spec was carried out."""
    cluster = well(OLD)
    cluster.take(plan(of, cluster))
    return cluster


def test_when_both_change_the_routers_roll_first() -> None:
    cluster = well(OLD)
    result = plan(NEW, cluster)
    assert applied(result) == {"digits"}
    assert condition(result)["reason"] == "RollingOut"
    assert "when that of the router is complete" in condition(result, "PredictorReady")["message"]
    assert condition(result, "Available")["status"] == "True"
    cluster.take(result)
    surge(cluster, NEW, "router", ready=False)
    assert applied(plan(NEW, cluster)) == {"digits"}, "not while old routers are there"


def test_then_the_predictors_and_then_it_is_ready() -> None:
    cluster = begun(NEW)
    cluster.deploy(NEW, "router", report=WELL)
    result = plan(NEW, cluster)
    assert applied(result) == {"digits", "digits-predictor"}
    assert "0 of 2 predictor pods are updated" in condition(result)["message"]
    cluster.take(result)
    surge(cluster, NEW, "predictor")
    assert "1 of 2 predictor pods are updated" in condition(plan(NEW, cluster))["message"]
    cluster.drop(POD, "digits-predictor-new")
    cluster.deploy(NEW, "predictor")
    assert condition(plan(NEW, cluster))["status"] == "True"


def test_a_change_of_one_waits_for_nothing() -> None:
    assert "digits-predictor" in applied(plan(NEW_PREDICTOR, well(OLD)))
    assert "digits" in applied(plan(NEW_ROUTER, well(OLD)))


def test_a_bad_release_never_reaches_the_predictors() -> None:
    cluster = begun(NEW)
    surge(cluster, NEW, "router", ready=False, container={"state": terminated(78, "no")})
    result = plan(NEW, cluster)
    assert "digits-predictor" not in applied(result)
    assert condition(result)["reason"] == "ConfigurationFailed"
    assert condition(result, "Available")["status"] == "True"


def test_predictors_that_may_be_the_remedy_do_not_wait() -> None:
    cluster = begun(NEW)
    surge(cluster, NEW, "router", ready=False, conditions=[NO_ROOM])
    assert "digits-predictor" in applied(plan(NEW, cluster)), "a smaller predictor may make room"


def test_predictors_with_nothing_to_lose_do_not_wait() -> None:
    cluster = well(OLD)
    for index in range(2):
        cluster.put(POD, pod(workloads(OLD)["predictor"], f"digits-predictor-{index}", ready=False))
    assert applied(plan(NEW, cluster)) == {"digits", "digits-predictor"}


def test_routers_wait_for_predictors_whose_update_goes_well() -> None:
    cluster = begun(NEW_PREDICTOR)
    surge(cluster, NEW_PREDICTOR, "predictor", ready=False)
    both = service(predictor={"model": {"storageUri": "s3://models/v2"}}, router={"env": [{"name": "A", "value": "1"}]})
    result = plan(both, cluster)
    assert applied(result) == {"digits-predictor"}
    assert "when that of the predictor is complete" in condition(result, "RouterReady")["message"]


def test_a_new_fallback_does_not_wait_for_a_broken_primary() -> None:
    cluster = begun(NEW_PREDICTOR)
    surge(cluster, NEW_PREDICTOR, "predictor", ready=False, container={"state": terminated(78, "no such object")})
    remedy = service(predictor={"model": {"storageUri": "s3://models/v2"}}, fallback=[STATIC])
    assert "digits" in applied(plan(remedy, cluster))


def test_an_update_of_pods_of_which_none_answers_is_no_comfort() -> None:
    cluster = begun(NEW_PREDICTOR)
    for index in range(2):
        cluster.put(POD, pod(workloads(OLD)["predictor"], f"digits-predictor-{index}", ready=False))
    surge(cluster, NEW_PREDICTOR, "predictor", ready=False)
    assert condition(plan(NEW_PREDICTOR, cluster), "PredictorReady")["reason"] == "PredictorNotReady"


def test_a_broken_new_model_is_not_ready_though_the_old_one_answers() -> None:
    cluster = begun(NEW_PREDICTOR)
    surge(cluster, NEW_PREDICTOR, "predictor", ready=False, container={"state": terminated(78, "no such object")})
    result = plan(NEW_PREDICTOR, cluster)
    assert condition(result)["reason"] == "ModelLoadFailed"
    assert condition(result, "Available")["status"] == "True"
    assert result.status is not None
    assert result.status["answering"] == "predictor"


def test_pods_of_the_broken_revision_before_do_not_speak_for_the_repaired_one() -> None:
    cluster = begun(NEW_PREDICTOR)
    cluster.put(
        POD,
        pod(workloads(OLD)["predictor"], "digits-predictor-0", ready=False, container={"state": terminated(78, "no")}),
    )
    surge(cluster, NEW_PREDICTOR, "predictor", ready=False)
    assert condition(plan(NEW_PREDICTOR, cluster))["reason"] == "RollingOut"


def test_a_stalled_update_is_said() -> None:
    cluster = begun(NEW_PREDICTOR)
    surge(cluster, NEW_PREDICTOR, "predictor", ready=False)
    shown = next(item for item in cluster.all(DEPLOYMENT) if item["metadata"]["name"] == "digits-predictor")
    shown["status"] = {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}
    ready = condition(plan(NEW_PREDICTOR, cluster))
    assert ready["reason"] == "RolloutStalled"
    assert "digits-predictor-new" in ready["message"]


def test_a_deployment_that_somebody_deleted_is_made_again() -> None:
    cluster = well(OLD)
    cluster.drop(DEPLOYMENT, "digits-predictor")
    result = plan(OLD, cluster)
    assert "digits-predictor" in applied(result)
    assert condition(result)["reason"] == "Creating"


def test_a_change_that_needs_no_new_pods_starts_no_update() -> None:
    of = service(predictor={"minReplicas": 2, "maxReplicas": 4}, generation=2)
    result = plan(of, well(OLD))
    assert condition(result)["status"] == "True"
    assert condition(result)["observedGeneration"] == 2
