"""From a storage URI to a loaded model."""

from __future__ import annotations

import tempfile
from pathlib import Path

from headrace.serving.onnx_model import ModelError, OnnxModel
from headrace.storage import InvalidLocation, NotFound, download

FILE = "model.onnx"
"""What a folder must hold."""
EXTERNAL_DATA = ".data"


def load_model(uri: str, credentials: Path | None, threads: int) -> OnnxModel:
    """Fetch and load the model at `uri`: an ONNX file, or a folder with one model.onnx (and its external data).

    Args:
        credentials: Folder with one file per AWS_* name; None for the environment's.
        threads: Threads within one run.

    Raises:
        ModelError: there is no model there or it cannot be served; asking again will not help.
        StorageError: the store cannot be asked, or not by us.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-model-") as folder:
        try:
            found = download(uri, Path(folder), credentials)
        except (NotFound, InvalidLocation) as error:
            raise ModelError(str(error)) from error
        try:
            return OnnxModel(_file(found), threads)
        except ModelError as error:
            raise ModelError(f"{uri}: {error}") from error


def _file(found: Path) -> Path:
    if found.is_file():
        return found
    named = found / FILE
    if named.is_file():
        return named
    names = sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file())
    listed = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    raise ModelError(f"the folder has no {FILE} (it has {listed or 'no files'}); write the model under that name")
