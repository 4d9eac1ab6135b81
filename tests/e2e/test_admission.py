"""What kubectl says at an apply, with the certificate that the installed operator made for itself."""

from __future__ import annotations

import urllib.request

from cluster.kubectl import Kube, wait_for
from cluster.release import SYSTEM_NAMESPACE
from tests.e2e.installation import metric_sum
from tests.e2e.resources import gpu_job, inference_service, script_job, training_job

REVIEWS = "headrace_admission_reviews_total"


def static_service(data: list[float]) -> dict[str, object]:
    """A service whose last resort is three probabilities."""
    service = inference_service("digits", "s3://models/digits")
    outputs = [{"name": "probabilities", "datatype": "FP32", "shape": [3], "data": data}]
    service["spec"]["fallback"] = [{"name": "static", "static": {"outputs": outputs}}]
    return service


def test_a_static_tensor_that_does_not_hold_is_refused(kube: Kube) -> None:
    # Until the API server trusts the certificate, it takes what the schema takes.
    words = wait_for("a refusal", lambda: kube.refused(static_service([0.5, 0.5])), seconds=60)
    assert "spec.fallback[0].static.outputs[0]" in words
    assert "data of output probabilities has 2 values and shape [3] means 3: change data or shape" in words


def test_what_the_workers_will_wait_for_is_a_warning(kube: Kube) -> None:
    _, job = script_job("early", steps=1)
    warning = kube.warned(job)
    assert "Warning: spec.script.configMap: ConfigMap 'early' does not exist in namespace" in warning
    assert "kubectl create configmap early" in warning
    assert "no node of this cluster offers nvidia.com/gpu" in kube.warned(gpu_job("gpu"))
    assert "Warning" not in kube.warned(training_job("well", workers=1, epochs=1))
    kube.delete("trainingjob", "early", "gpu", "well", wait=False)


def test_a_name_that_is_somebody_else_s_is_refused(kube: Kube) -> None:
    kube.run("create", "service", "clusterip", "taken-workers", "--tcp=80")
    words = kube.refused(training_job("taken", workers=2))
    assert "Service e2e-admission/taken-workers exists already and was not made by Headrace" in words


def test_both_replicas_answer(kube: Kube) -> None:
    system = kube.within(SYSTEM_NAMESPACE)
    pods = [pod["metadata"]["name"] for pod in system.list("pods", "app.kubernetes.io/component=operator")]
    assert len(pods) == 2

    def both() -> bool:
        # The Service sends each review to either.
        kube.refused(static_service([0.5]))
        return all(answered(system, pod) for pod in pods)

    wait_for("reviews by leader and standby", both, seconds=120, every=2)


def answered(system: Kube, pod: str) -> bool:
    """Whether this replica was asked and never failed."""
    with system.forward(f"pod/{pod}", 8080) as port:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    assert metric_sum(text, REVIEWS, 'result="failed"') == 0
    return metric_sum(text, REVIEWS) > 0
