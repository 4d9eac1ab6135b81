"""Run a script as a TrainingJob and follow it: a ConfigMap with the text, the job, the log of worker 0."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from headrace.api.trainingjob import TrainingJob
from headrace.training.launch.outcome import Outcome, TrainingFailed
from headrace.training.launch.screen import Screen

KEY = "train.py"
POLL = 1.0
"""Seconds between two looks at the job."""
LAST_LINES = 15.0
"""Seconds for the log to come to its end once the job has ended."""
AWAY = 60.0
"""Seconds for which the API server may not answer."""


class Cluster:
    """The cluster that a kubeconfig or the pod's ServiceAccount leads to.

    Args:
        namespace: Of the job; by default the context's, or the pod's.
        context: Of the kubeconfig; by default the current one.

    Raises:
        RuntimeError: the package kubernetes is not installed, or there is no cluster to talk to.
    """

    def __init__(self, namespace: str | None = None, context: str | None = None) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise RuntimeError(
                "the package kubernetes is not installed: pip install 'headrace[sdk]', or run with local=True"
            ) from error
        self._errors = client.exceptions.ApiException
        try:
            config.load_kube_config(context=context)
            _, current = config.list_kube_config_contexts()
            found = (current.get("context") or {}).get("namespace")
        except config.ConfigException:
            try:
                config.load_incluster_config()
            except config.ConfigException as error:
                raise RuntimeError(
                    f"there is no cluster to run in ({error}): set KUBECONFIG, or run with local=True"
                ) from error
            with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
                found = file.read().strip()
        self.namespace = namespace or found or "default"
        self._core, self._custom = client.CoreV1Api(), client.CustomObjectsApi()

    def create(self, job: Mapping[str, Any], script: str) -> str:
        """Make the job and the ConfigMap that it runs, which goes when it goes; the job's uid.

        Raises:
            ValueError: the API server refuses them; the text is its own.
        """
        name = job["metadata"]["name"]
        config_map = {"metadata": {"name": name}, "data": {KEY: script}}
        try:
            self._core.create_namespaced_config_map(self.namespace, config_map)
            try:
                made = self._custom.create_namespaced_custom_object(*self._where, dict(job))
            except self._errors:
                self._core.delete_namespaced_config_map(name, self.namespace)
                raise
            owner = {
                "apiVersion": job["apiVersion"],
                "kind": job["kind"],
                "name": name,
                "uid": made["metadata"]["uid"],
            }
            patch = {"metadata": {"ownerReferences": [owner]}}
            self._core.patch_namespaced_config_map(name, self.namespace, patch)
        except self._errors as error:
            raise ValueError(_words(error)) from error
        return str(made["metadata"]["uid"])

    def delete(self, name: str) -> None:
        """Delete the job."""
        with contextlib.suppress(self._errors):
            self._custom.delete_namespaced_custom_object(*self._where, name)

    def follow(self, name: str, screen: Screen) -> Outcome:
        """Show the job until it has ended.

        Raises:
            TrainingFailed: it failed, or is gone.
        """
        log = threading.Thread(target=self._follow_log, args=(f"{name}-worker-0", screen, done := threading.Event()))
        log.daemon = True
        log.start()
        try:
            job = self._until_ended(name, screen)
        finally:
            done.set()
        log.join(LAST_LINES)
        status = job.get("status") or {}
        failed = _condition(status, "Failed")
        if failed["status"] == "True":
            raise TrainingFailed(f"job {name} failed: {failed['reason']}: {failed['message']}")
        metrics = {key: float(value) for key, value in (status.get("metrics") or {}).items()}
        return Outcome(screen.value, metrics, status.get("modelUri") or None, name)

    def _until_ended(self, name: str, screen: Screen) -> dict[str, Any]:
        said, heard = "", time.monotonic()
        while True:
            try:
                job: dict[str, Any] = self._custom.get_namespaced_custom_object(*self._where, name)
                heard = time.monotonic()
            except self._errors as error:
                if error.status == 404:
                    raise TrainingFailed(f"job {name} was deleted") from error
                if time.monotonic() - heard > AWAY:
                    raise TrainingFailed(f"job {name} cannot be looked at for {AWAY:g} s: {_words(error)}") from error
                time.sleep(POLL)
                continue
            status = job.get("status") or {}
            if "True" in (_condition(status, "Succeeded")["status"], _condition(status, "Failed")["status"]):
                return job
            ready = _condition(status, "Ready")
            text = f"{name}: {ready['reason']}" + (f": {ready['message']}" if ready["message"] else "")
            if ready["reason"] and text != said:
                said = text
                screen.say(text)
            screen.progress(status.get("progress") or {})
            time.sleep(POLL)

    def _follow_log(self, pod: str, screen: Screen, done: threading.Event) -> None:
        """Lines of worker 0, over its restarts and its pods, until the job has ended and the log is at its end."""
        seen: tuple[str, str] | None = None
        while True:
            last_look = done.is_set()
            try:
                found = self._core.read_namespaced_pod(pod, self.namespace)
                states = found.status.container_statuses or []
                begun = any(state.name == "worker" and not state.state.waiting for state in states)
                if begun and seen != (found.metadata.uid, ""):
                    seen = (found.metadata.uid, "")
                    stream = self._core.read_namespaced_pod_log(
                        pod, self.namespace, container="worker", follow=True, _preload_content=False
                    )
                    for line in _lines(stream):
                        screen.line(line)
            except self._errors:
                pass  # no such pod yet, or none any more
            except OSError as error:
                screen.say(f"the log of {pod} broke off: {error}")
            if last_look:
                return
            done.wait(POLL)

    @property
    def _where(self) -> tuple[str, str, str, str]:
        group, version = TrainingJob.info.api_version.split("/")
        return group, version, self.namespace, TrainingJob.info.plural


def _lines(stream: Any) -> Any:
    """Whole lines of a response that comes in pieces."""
    rest = b""
    for piece in stream.stream(1 << 14):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _condition(status: Mapping[str, Any], kind: str) -> dict[str, str]:
    none = {"type": kind, "status": "Unknown", "reason": "", "message": ""}
    return next((none | item for item in status.get("conditions") or () if item["type"] == kind), none)


def _words(error: Any) -> str:
    """What the API server said, without the headers."""
    import json

    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
