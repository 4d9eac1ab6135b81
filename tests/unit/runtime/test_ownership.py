"""What a kind takes for its own: nothing outside its resource's namespace, whatever labels say."""

from __future__ import annotations

from typing import Any, cast

from controllers.inferenceservice.observed import CHILDREN
from controllers.inferenceservice.observed import gather as gather_service
from controllers.runtime.cache import CacheSet, WatchCache
from controllers.runtime.objects import INSTANCE, NODE, OWNER_KIND, OWNER_UID, POD, Manifest
from controllers.trainingjob.observed import gather as gather_job
from headrace.api import InferenceService
from tests.unit.inferenceservice import factory
from tests.unit.trainingjob import worlds


def caches(*pods: Manifest) -> CacheSet:
    """Caches that have seen these pods."""
    # The client is for `run`, which nobody calls here.
    made = CacheSet(WatchCache(cast(Any, None), type_) for type_ in (POD, NODE, *CHILDREN))
    for version, pod in enumerate(pods, 1):
        metadata = {**pod["metadata"], "uid": f"pod-{version}", "resourceVersion": str(version)}
        made.store(POD).put({**pod, "metadata": metadata})
    return made


def elsewhere(pod: Manifest, **labels: str) -> Manifest:
    """The pod as somebody makes it in a namespace of their own."""
    metadata = {**pod["metadata"], "namespace": "elsewhere", "labels": {**pod["metadata"]["labels"], **labels}}
    return {**pod, "metadata": metadata}


def test_a_job_does_not_count_a_pod_of_another_namespace_that_names_its_uid() -> None:
    job = worlds.job()
    forged = {OWNER_UID: job.metadata.uid, OWNER_KIND: "TrainingJob", INSTANCE: job.metadata.name}
    pod = worlds.pod(job, 0)
    pod["metadata"] |= {"namespace": job.metadata.namespace, "labels": {**pod["metadata"]["labels"], **forged}}
    other = worlds.ended(elsewhere(worlds.pod(job, 1), **forged), 1)
    found = gather_job(job, caches(pod, other)).pods
    assert list(found) == [pod["metadata"]["name"]]


def test_a_service_does_not_count_pods_of_its_deployment_applied_in_another_namespace() -> None:
    service: InferenceService = factory.service()
    workload = factory.workloads(service)["router"]
    pod = factory.pod(workload, "digits-0", report=factory.WELL)
    found = gather_service(service, caches(pod, elsewhere(factory.pod(workload, "digits-1", report=factory.DEGRADED))))
    assert [item["metadata"]["name"] for item in found.router.pods] == ["digits-0"]
    assert [report.answering for report in found.reports] == ["predictor"]
