"""The resources that the e2e tests apply: small, real, and close to examples/."""

from __future__ import annotations

import textwrap
from typing import Any

from cluster import images
from cluster.kubectl import Kube, Manifest

SMALL: Manifest = {"requests": {"cpu": "100m", "memory": "300Mi"}, "limits": {"memory": "1Gi"}}


def training_job(name: str, *, workers: int = 3, epochs: int = 20, **spec: Any) -> Manifest:
    """A job of the built-in trainer on the UCI digits."""
    body: Manifest = {
        "numWorkers": workers,
        "classifier": {
            "dataset": {"builtin": "Digits"},
            "hiddenSizes": [64],
            "epochs": epochs,
            "batchSize": 96,
            "learningRate": 0.003,
        },
        "resources": SMALL,
    }
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": body | spec,
    }


SLOW_SCRIPT = textwrap.dedent(
    """\
    # Averages a tensor over all workers once per step, slowly, with checkpoints: a run long enough to be hurt.
    import os, time
    import torch
    import torch.distributed as dist
    from headrace.training import session

    steps = int(os.environ["STEPS"])
    with session() as run:
        total = torch.nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            total.weight.zero_()
            state = run.checkpoints.restore({"total": total})
            step = state["step"] if state else 0
            while step < steps:
                part = torch.full((1, 4), float(run.rank + 1))
                dist.all_reduce(part)
                total.weight += part
                step += 1
                if run.checkpoints.due():
                    run.checkpoints.save(step, {"total": total})
                run.report(step=step, steps=steps, loss=1.0 / step, samples=1)
                time.sleep(float(os.environ["STEP_SECONDS"]))
        expected = float(steps * sum(range(1, run.world_size + 1)))
        found = total.weight.flatten().tolist()
        assert found == [expected] * 4, f"{found} instead of {expected}"
        print(f"sum {expected} as one uninterrupted run gives", flush=True)
    """
)


def script_job(name: str, *, steps: int, step_seconds: float = 0.2, workers: int = 3, **spec: Any) -> list[Manifest]:
    """A ConfigMap with SLOW_SCRIPT and the job that runs it: its own assertion fails when a step is lost or doubled."""
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"train.py": SLOW_SCRIPT}}
    body: Manifest = {
        "numWorkers": workers,
        "script": {"configMap": {"name": name, "key": "train.py"}},
        "env": [{"name": "STEPS", "value": str(steps)}, {"name": "STEP_SECONDS", "value": str(step_seconds)}],
        "checkpoint": {"interval": "1s"},
        "resources": SMALL,
    }
    job = {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": body | spec,
    }
    return [script, job]


def gpu_job(name: str) -> Manifest:
    """A job that asks for a GPU."""
    return training_job(name, workers=1, gpu={"count": 1})


def inference_service(name: str, primary: str, smaller: str | None = None, **predictor: Any) -> Manifest:
    """A service with the given model, a smaller model behind it and a static answer at the end."""
    fallback: list[Manifest] = []
    if smaller:
        fallback.append({"name": "small", "model": {"storageUri": smaller}, "timeout": "500ms"})
    fallback.append({"name": "static", "static": {"outputs": [{"name": "label", "datatype": "INT64", "data": [-1]}]}})
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "predictor": {
                "model": {"modelFormat": "ONNX", "storageUri": primary},
                "minReplicas": 2,
                "maxReplicas": 2,
                "timeout": "3s",
                "circuitBreaker": {"waitDurationInOpenState": "1s"},
                "resources": {"requests": {"cpu": "100m", "memory": "150Mi"}, "limits": {"memory": "512Mi"}},
            }
            | predictor,
            "fallback": fallback,
            "router": {
                "replicas": 2,
                "resources": {"requests": {"cpu": "100m", "memory": "150Mi"}, "limits": {"memory": "512Mi"}},
            },
        },
    }


def pod(name: str, command: list[str], *, image: str = "serving", **spec: Any) -> Manifest:
    """A pod of one of the project's images, as restricted Pod Security wants it.

    Args:
        name: Its name.
        command: What it runs; empty for the image's own program.
        image: Folder of images/.
        **spec: `labels` of the pod, further fields of its `container`, and any others of its spec.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": spec.pop("labels", {})},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": images.tag(image),
                    "imagePullPolicy": "IfNotPresent",
                    **({"command": command} if command else {}),
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    **spec.pop("container", {}),
                }
            ],
            **spec,
        },
    }


def running(kube: Kube, name: str) -> bool:
    """Whether a pod runs."""
    return bool(kube.get("pod", name)["status"].get("phase") == "Running")


def ready_pod(kube: Kube, name: str) -> Manifest | None:
    """A pod once it is Ready."""
    found = kube.get("pod", name)
    conditions = found["status"].get("conditions", [])
    return found if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions) else None
