"""From what a spec says of a model to the loaded, warmed model."""

from __future__ import annotations

import tempfile
from pathlib import Path

from headrace.api.inferenceservice import ModelSource
from headrace.serving.models import formats
from headrace.serving.models.base import Model, ModelError
from headrace.serving.models.python_model import PythonModel
from headrace.serving.models.warm import warm
from headrace.storage import InvalidLocation, NotFound, download


def load_model(model: ModelSource, credentials: Path | None, threads: int, code: Path | None = None) -> Model:
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
    secret = credentials / model.secret_ref.name if credentials and model.secret_ref else None
    if model.model_format == "Python":
        if code is None:
            raise ModelError("a Python predictor needs its code: set model.code")
        # The class may read its files whenever it likes, so they stay as long as the process.
        folder = Path(tempfile.mkdtemp(prefix="headrace-model-")) if model.storage_uri else None
        found = _fetch(model.storage_uri, folder, secret) if model.storage_uri and folder else None
        made: Model = PythonModel(code, model.code.class_name if model.code else "Predictor", found)
    else:
        with tempfile.TemporaryDirectory(prefix="headrace-model-") as folder_name:
            uri = model.storage_uri or ""
            try:
                made = formats.load(
                    model.model_format, _fetch(uri, Path(folder_name), secret), threads, model.trusted_types
                )
            except ModelError as error:
                raise ModelError(f"{uri}: {error}") from error
    warm(made)
    return made


def _fetch(uri: str, folder: Path, secret: Path | None) -> Path:
    try:
        return download(uri, folder, secret)
    except (NotFound, InvalidLocation) as error:
        raise ModelError(str(error)) from error
