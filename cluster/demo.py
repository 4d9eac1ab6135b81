"""`make demo`: the platform's main job, shown on the local cluster with real data.

Three workers in three zones train a classifier on the UCI handwritten digits, one worker trains the same for
comparison, and a smaller model is trained as the fallback. The model is served; a standard client asks it; its pods
are killed; the service goes on answering from the fallback; the pods come back. The report at the end is made of
what the cluster said.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
import yaml
from sklearn.datasets import load_digits

from cluster.kubectl import Kube, Manifest, condition, is_true, wait_for
from cluster.process import ClusterError
from cluster.release import Release
from headrace.api.chain import PREDICTOR

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMESPACE = "demo"
SERVICE = "digits"
JOBS = ("digits", "digits-one-worker", "digits-small")


@dataclass(slots=True)
class Report:
    """The lines of the closing report, by heading."""

    sections: list[tuple[str, list[str]]] = field(default_factory=list)

    def section(self, title: str) -> list[str]:
        """A new section; its lines are appended to the list."""
        lines: list[str] = []
        self.sections.append((title, lines))
        return lines

    def __str__(self) -> str:
        return "\n".join(
            line for title, lines in self.sections for line in (f"\n{title}", *(f"  {line}" for line in lines))
        )


def say(line: str) -> None:
    """A progress line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def example(name: str) -> list[Manifest]:
    """The objects of examples/<name>.yaml."""
    return list(yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()))


def fresh_namespace(release: Release) -> Kube:
    """The demo's namespace, empty."""
    kube = release.kube(NAMESPACE)
    kube.run("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=180)
    kube.run("create", "namespace", NAMESPACE)
    return kube


def wait_for_job(kube: Kube, name: str) -> Manifest:
    """Wait until a TrainingJob succeeded, with its progress shown.

    Raises:
        ClusterError: It failed; carries its own message.
    """
    shown = ""

    def look() -> Manifest | None:
        nonlocal shown
        job = kube.get("trainingjob", name)
        if is_true(job, "Failed"):
            raise SystemExit(f"TrainingJob {name} failed: {condition(job, 'Failed')['message']}")
        status = job.get("status", {})
        progress = status.get("progress", {})
        line = (
            f"{name}: {condition(job, 'Ready')['reason'] or 'Pending'}, "
            f"workers {status.get('workers', {}).get('summary', '-')}, "
            f"epoch {progress.get('epoch', 0)}, loss {progress.get('loss') or '-'}"
        )
        if line != shown:
            say(line)
            shown = line
        return job if is_true(job, "Succeeded") else None

    return wait_for(f"TrainingJob {name} to succeed", look, seconds=300)


def train(kube: Kube, report: Report) -> None:
    """Train on three workers, on one, and the smaller model."""
    lines = report.section("Training: UCI handwritten digits, 1797 images, the test fifth never seen in training")
    kube.apply(*example("trainingjob-digits"), *example("trainingjob-digits-comparison"))
    for name in JOBS:
        status = wait_for_job(kube, name)["status"]
        where = ", ".join(f"{place['pod']} in zone {place['zone']}" for place in status["placement"])
        metrics = status["metrics"]
        lines.append(
            f"{name}: test accuracy {float(metrics['accuracy']):.4f} after {status['progress']['epoch']} epochs, "
            f"{status['progress']['backend']} all-reduce, {status['progress']['throughput']} samples/s"
        )
        lines.append(f"  ran as {where}")
        lines.append(f"  model {status['modelUri']}")


@dataclass(frozen=True, slots=True)
class Answer:
    """One prediction over all images: who answered, why not the primary, and the share of right labels."""

    step: str
    reason: str
    right: float


def answering(port: int, image: np.ndarray[Any, Any]) -> tuple[str, str]:
    """The step that answers and why it is not the one before, from the response headers (tritonclient hides them)."""
    tensor = {"name": "input", "shape": [1, len(image)], "datatype": "FP32", "data": image.tolist()}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/{SERVICE}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.headers["headrace-step"], response.headers.get("headrace-fallback-reason", "")


def ask(port: int, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Answer | None:
    """Ask through the standard client of the Open Inference Protocol; None when the step changed meanwhile."""
    step, reason = answering(port, images[0])
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    batch = triton.InferInput("input", list(images.shape), "FP32")
    batch.set_data_from_numpy(images)
    predicted = client.infer(SERVICE, [batch]).as_numpy("label").ravel()
    if answering(port, images[0])[0] != step:
        return None
    return Answer(step, reason, float((predicted == labels).mean()))


def serve(kube: Kube, report: Report) -> None:
    """Serve the model, ask it, kill it, ask again, and wait until it is back."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    kube.apply(*example("inferenceservice-digits"))
    say("InferenceService digits: waiting until the primary answers")
    wait_for("the service to be ready", lambda: is_true(kube.get("inferenceservice", SERVICE), "Ready"), seconds=180)
    lines = report.section("Serving: tritonclient asks the service's one address for all 1797 images")
    with kube.forward(f"service/{SERVICE}", 80) as port:

        def answer_of(wanted: Callable[[str], bool], what: str, seconds: float) -> Answer:
            def look() -> Answer | None:
                answer = ask(port, images, labels)
                return answer if answer and wanted(answer.step) else None

            return wait_for(what, look, seconds=seconds, every=0.05)

        lines.append(_line("all well", answer_of(PREDICTOR.__eq__, "the primary to answer", 30)))
        predictors = kube.list("pods", f"app.kubernetes.io/instance={SERVICE},app.kubernetes.io/component=predictor")
        say(f"killing the primary: {len(predictors)} predictor pods")
        kube.delete("pod", *[pod["metadata"]["name"] for pod in predictors], force=True, wait=False)
        killed = time.monotonic()
        fallback = answer_of(PREDICTOR.__ne__, "a fallback to answer", 30)
        say(f"the fallback step {fallback.step} answered {time.monotonic() - killed:.1f} s after the kill")
        lines.append(_line("primary killed", fallback))

        def said() -> Manifest | None:
            now = condition(kube.get("inferenceservice", SERVICE), "Ready")
            # A primary that is back before the routers' reports are in has nothing degraded left to show.
            back = answering(port, images[0])[0] == PREDICTOR
            return now if now["reason"] == "FallbackAnswering" or back else None

        degraded = wait_for("the status to say who answers", said, seconds=30, every=0.1)
        lines.append(f"  status then: Ready={degraded['status']} {degraded['reason']}: {degraded['message']}")
        recovered = answer_of(PREDICTOR.__eq__, "the primary to answer again", 120)
        lines.append(_line(f"recovered after {time.monotonic() - killed:.0f} s", recovered))
    wait_for("the service to be ready", lambda: is_true(kube.get("inferenceservice", SERVICE), "Ready"), seconds=60)


def _line(title: str, answer: Answer) -> str:
    why = f" ({answer.reason})" if answer.reason else ""
    return f"{title}: step {answer.step} answered{why}, {answer.right:.1%} right"


def look_around(release: Release, report: Report) -> None:
    """The commands to go on with."""
    report.section("Look around").extend(
        [
            f"export KUBECONFIG={release.kubeconfig} PATH={release.kubectl.parent}:$PATH",
            f"kubectl get headrace -n {NAMESPACE}",
            f"kubectl describe trainingjob digits -n {NAMESPACE}",
            f"kubectl logs digits-worker-0 -n {NAMESPACE}",
            "kubectl explain trainingjob.spec",
            "make down    # everything away again",
        ]
    )


def main() -> int:
    """Run the demo on the cluster that is up, with the chart installed."""
    report = Report()
    try:
        release = Release.local()
        say("installing the chart")
        release.install()
        kube = fresh_namespace(release)
        train(kube, report)
        serve(kube, report)
        look_around(release, report)
    except (ClusterError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
