"""From what a spec says of a model to the loaded, warmed model."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.api.inferenceservice import ModelSource, RegisteredModelReference
from headrace.drift import Drift
from headrace.mlflow import Client, RegistryError
from headrace.serving.models import formats
from headrace.serving.models.base import Model, ModelError
from headrace.serving.models.python_model import PythonModel
from headrace.serving.models.warm import warm
from headrace.storage import InvalidLocation, NotFound, Unreachable, download

log = logging.getLogger(__name__)

CARD = "card.json"
"""What training writes beside a model (headrace.training.model_card)."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and what its card says of the rows that it was trained on.

    Attributes:
        drift: None where there is no card, or none with a profile.
    """

    model: Model
    drift: Drift | None


def load_model(model: ModelSource, credentials: Path | None, threads: int, code: Path | None = None) -> Model:
    """The model of `load`, without its card."""
    return load(model, credentials, threads, code).model


def load(model: ModelSource, credentials: Path | None, threads: int, code: Path | None = None) -> Loaded:
    """Fetch, load and warm a model.

    Args:
        model: Its format and where it is; a TrainingJob must have been resolved to its URI.
        credentials: Folder with one folder per Secret, of which each file is one value; None for the environment's.
        threads: Threads within one run.
        code: The Python file of a model of format Python.

    Raises:
        ModelError: there is no model there or it cannot be served; asking again will not help.
        StorageError: the store cannot be asked, or not by us.
    """
    if model.model_format == "Python":
        if code is None:
            raise ModelError("a Python predictor needs its code: set model.code")
        # The class may read its files whenever it likes, so they stay as long as the process.
        folder = Path(tempfile.mkdtemp(prefix="headrace-model-"))
        found = _fetch(model, folder, credentials) if model.storage_uri or model.registry else None
        made: Model = PythonModel(code, model.code.class_name if model.code else "Predictor", found)
        drift = None
    else:
        with tempfile.TemporaryDirectory(prefix="headrace-model-") as name:
            file = _fetch(model, Path(name), credentials)
            try:
                made = formats.load(model.model_format, file, threads, model.trusted_types)
            except ModelError as error:
                raise ModelError(f"{_address(model)}: {error}") from error
            drift = _profile(file)
    warm(made)
    return Loaded(made, drift)


def _profile(found: Path) -> Drift | None:
    """What the card beside a model says of its training rows."""
    file = found / CARD
    if not file.is_file():
        return None
    try:
        columns = json.loads(file.read_bytes()).get("profile")
        return Drift(columns) if columns else None
    except (ValueError, AttributeError) as error:
        # The model is as good without it.
        log.warning("no drift is computed", extra={"fields": {"reason": str(error)}})
        return None


def _address(model: ModelSource) -> str:
    registry = model.registry
    if registry is None:
        return model.storage_uri or ""
    return f"{registry.model}@{registry.alias}" if registry.alias else f"{registry.model} version {registry.version}"


def _fetch(model: ModelSource, folder: Path, credentials: Path | None) -> Path:
    """The model's file or folder, copied here."""
    secret = credentials / model.secret_ref.name if credentials and model.secret_ref else None
    uri = model.storage_uri
    if model.registry is not None:
        uri = _registered(model.registry, folder, credentials)
        if uri is None:
            return folder
    if uri is None:
        raise ModelError("names no place where the model is: set storageUri, registry or trainingJobRef")
    try:
        return download(uri, folder, secret)
    except (NotFound, InvalidLocation) as error:
        raise ModelError(str(error)) from error


def _registered(registry: RegisteredModelReference, folder: Path, credentials: Path | None) -> str | None:
    """Copy the artifacts of a version here, or say in which store they are."""
    variables: Mapping[str, str] = os.environ
    if credentials is not None and registry.secret_ref is not None:
        secret = credentials / registry.secret_ref.name
        variables = {file.name: file.read_text().strip() for file in secret.glob("MLFLOW_*")}
    client = Client(registry.tracking_uri, variables)
    try:
        version = registry.version or client.version_of(registry.model, registry.alias or "")
        uri = client.location(registry.model, version)
        log.info("model version", extra={"fields": {"model": registry.model, "version": version, "uri": uri}})
        if not uri.startswith("mlflow-artifacts:"):
            return uri
        client.download(uri, folder)
    except RegistryError as error:
        if error.retryable:
            raise Unreachable(registry.tracking_uri, str(error), "see whether the MLflow server runs") from error
        raise ModelError(f"{error}; correct model.registry, or register the model under this name and alias") from error
    return None
