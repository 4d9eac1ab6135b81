"""Where a model comes from."""

from __future__ import annotations

from typing import Literal

from headrace.api.meta import LocalReference
from headrace.api.schema import Model, StorageURI


class ModelSource(Model):
    """A model in storage."""

    model_format: Literal["ONNX"] = "ONNX"
    """Format of the model file. ONNX: served by ONNX Runtime."""
    storage_uri: StorageURI
    """The model file, or a folder with one model.onnx."""
    secret_ref: LocalReference | None = None
    """Secret with storage credentials, as in a TrainingJob's storage.secretRef; by default the embedded store's."""
