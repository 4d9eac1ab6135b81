"""`headrace.training.run`: a function of a notebook as a TrainingJob, or as processes of this machine.

def train(run, epochs):
    import torch
    ...
    run.report(step=step, steps=steps, loss=loss)
    return {"loss": float(loss)}

headrace.training.run(train, {"epochs": 10}, workers=3)              # in the cluster
headrace.training.run(train, {"epochs": 10}, workers=3, local=True)  # here
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from headrace.api.meta import KeyReference
from headrace.api.trainingjob import Script, Topology, TrainingJob, TrainingJobSpec
from headrace.training.launch.outcome import Outcome, TrainingFailed
from headrace.training.launch.screen import Screen
from headrace.training.launch.source import SourceError, script_of

__all__ = ["Outcome", "SourceError", "TrainingFailed", "run"]

TTL = 3600
"""Seconds for which a finished job is kept, for its logs."""


def run(
    fn: Callable[..., Any],
    arguments: Mapping[str, Any] | None = None,
    *,
    workers: int = 1,
    local: bool = False,
    name: str | None = None,
    namespace: str | None = None,
    context: str | None = None,
    storage_uri: str | None = None,
    topology: Topology | None = None,
    progress: bool = True,
    **spec: Any,
) -> Outcome:
    """Train with a function on `workers` workers; show worker 0's log and a progress bar; wait for the end.

    The function's source is sent, with the functions, classes and constants of its module that it uses; modules are
    imported where it runs. Interrupting (Ctrl-C) deletes the job.

    Args:
        fn: Called on every worker. A first parameter `run` gets the session (`headrace.training.session`).
        arguments: Its keyword arguments; JSON.
        workers: Workers, processes with local=True.
        local: Run on this machine.
        name: Of the job; by default made from the function's.
        namespace, context: Where; by default what kubectl would take.
        storage_uri: Folder for checkpoints and the model; by default the installation's, and none with local=True.
        topology: How the workers train together.
        progress: Show a bar (where tqdm is installed).
        **spec: Further fields of the job's spec, such as `image`, `gpu`, `resources`, `restart_policy`.

    Returns:
        What the function returned on worker 0, its metrics, and where the model is.

    Raises:
        SourceError: the function cannot be sent.
        ValueError: the job is refused (pydantic's ValidationError is one), or local=True with fields of a spec.
        TrainingFailed: the run failed.
        RuntimeError: there is no cluster.
    """
    mark = f"headrace-{secrets.token_hex(4)}"
    script = script_of(fn, arguments or {}, mark)
    if local:
        if spec:
            raise ValueError(f"{', '.join(spec)}: local=True has no pods; leave them out")
        from headrace.training.launch.local import run_locally

        told = topology.manifest() if topology is not None else None
        screen = Screen(mark, bar=progress)
        try:
            return run_locally(script, workers, storage_uri or "", _json(told), screen)
        finally:
            screen.close()
    job = _job(fn, name, workers, storage_uri, topology, spec)
    from headrace.training.launch.cluster import Cluster

    cluster = Cluster(namespace, context)
    screen = Screen(mark, bar=progress)
    called = job["metadata"]["name"]
    cluster.create(job, script)
    try:
        return cluster.follow(called, screen)
    except KeyboardInterrupt:
        cluster.delete(called)
        screen.say(f"{called}: deleted")
        raise
    finally:
        screen.close()


def _job(
    fn: Callable[..., Any],
    name: str | None,
    workers: int,
    storage_uri: str | None,
    topology: Topology | None,
    spec: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of the job."""
    from headrace.training.launch.cluster import KEY

    called = name or f"{_dns(fn.__name__)}-{secrets.token_hex(3)}"
    fields: dict[str, Any] = {"ttl_seconds_after_finished": TTL, **spec}
    if storage_uri:
        fields["storage"] = {"uri": storage_uri}
    if topology is not None:
        fields["topology"] = topology
    made = TrainingJobSpec(num_workers=workers, script=Script(config_map=KeyReference(name=called, key=KEY)), **fields)
    info = TrainingJob.info
    return {
        "apiVersion": info.api_version,
        "kind": info.kind,
        "metadata": {"name": called},
        "spec": made.manifest(),
    }


def _dns(name: str) -> str:
    """A function's name as a part of an object's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"


def _json(value: Any) -> str:
    import json

    return "" if value is None else json.dumps(value)
