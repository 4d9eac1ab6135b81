"""The end of a run: the gate, the model's files with their card, and the registry."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from headrace.api.trainingjob import Evaluation
from headrace.mlflow import Point, RegistryError
from headrace.storage import Store, patiently
from headrace.training.environment import Environment
from headrace.training.errors import ConfigurationError, GateNotMet
from headrace.training.model_card import CARD, card
from headrace.training.progress import significant
from headrace.training.registry import register

logger = logging.getLogger(__name__)


def check(gate: Evaluation | None, metrics: Mapping[str, float]) -> bool:
    """Whether the gate was passed; False where it says nothing of these metrics.

    Raises:
        GateNotMet: the model is not good enough.
    """
    if gate is None or gate.metric not in metrics:
        return False
    value = float(metrics[gate.metric])
    shown = significant(value, 6)
    if math.isnan(value) or (gate.min is not None and value < gate.min):
        raise GateNotMet(
            f"evaluation: {gate.metric} is {shown}, at least {gate.min:g} is asked for; nothing is published"
        )
    if gate.max is not None and value > gate.max:
        raise GateNotMet(
            f"evaluation: {gate.metric} is {shown}, at most {gate.max:g} is asked for; nothing is published"
        )
    return True


def unknown_metric(gate: Evaluation, metrics: Mapping[str, float]) -> ConfigurationError:
    """The error of a run that ended without the metric that its gate asks for."""
    known = ", ".join(sorted(metrics)) or "none"
    return ConfigurationError(
        "evaluation.metric",
        f"the run reported no metric {gate.metric!r}; it reported {known}",
        "name one of these, or report it: run.report(metrics={...}) or run.publish",
    )


def publish(
    environment: Environment,
    storage: Store,
    files: Mapping[str, bytes],
    metrics: Mapping[str, float],
    parameters: Mapping[str, Any],
    details: Mapping[str, Any],
    started: float,
    curve: Sequence[Point],
) -> tuple[str, dict[str, Any]]:
    """Write a model and its card into `model/`, and register it where that is asked for.

    Args:
        environment: This worker.
        storage: Folder of the run.
        files: Contents by name; the last one is the model, and is written last.
        metrics: Final ones.
        parameters: The trainer's settings.
        details: What else the card says.
        started: When the session began, seconds since the epoch.
        curve: Metrics while training went on.

    Returns:
        URI of the model, and what the report says of the registry.

    Raises:
        StorageError: it could not be written.
    """
    folder = storage.folder("model")
    about = card(environment, files, metrics, parameters, details, started)
    described = json.dumps(about, indent=1).encode()
    for name, content in {CARD: described, **files}.items():
        _write(folder, name, content)
    uri = folder.uri_of(list(files)[-1])
    logger.info("the model is at %s", uri)
    registry = environment.registry
    if registry is None:
        return uri, {}
    try:
        done = register(registry, environment.job, {**files, CARD: described}, uri, about, curve)
    except RegistryError as error:
        # The model is there and good; a registry that is down costs no training.
        logger.error("the model is not registered: %s", error)
        return uri, {"model": registry.model, "problem": str(error)[:1000]}
    return uri, {_camel(name): value for name, value in asdict(done).items()}


def _write(folder: Store, name: str, content: bytes) -> None:
    patiently(lambda: folder.write_bytes(name, content))


def _camel(name: str) -> str:
    return "runId" if name == "run_id" else name
