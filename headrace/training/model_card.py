"""What a model is, where it comes from and what it is worth: `model/card.json`.

format      headrace.dev/model-card/v1
signature   names, types and shapes of inputs and outputs (-1: any number)
metrics     of the test rows; classes: precision, recall, F1, AUC and rows of each class
data        what it was trained on: URI, rows, files with their SHA-256, table version, digest
parameters  the trainer's settings
run         who, where and how long: job, workers, image and its digest, git commit, versions
files       what lies beside the card, with SHA-256
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from headrace.storage import NotFound, StorageError, Store
from headrace.training.environment import Environment

FORMAT = "headrace.dev/model-card/v1"
CARD = "card.json"
MAX_HASHED = 1 << 30
"""Bytes of a data set whose files are read again for their checksums; of a larger one size and time are named."""
_DELTA = re.compile(r"^_delta_log/([0-9]{20})\.json$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


def card(
    environment: Environment,
    files: Mapping[str, bytes],
    metrics: Mapping[str, float],
    parameters: Mapping[str, Any],
    details: Mapping[str, Any],
    started: float,
) -> dict[str, Any]:
    """The card of a model.

    Args:
        environment: The worker that publishes it.
        files: What lies beside it.
        metrics: Final ones.
        parameters: The trainer's settings.
        details: What else is known; `data`, `classes`, `signature` are names of their own.
        started: When the session began, seconds since the epoch.
    """
    onnx = next((content for name, content in files.items() if name.endswith(".onnx")), None)
    found: dict[str, Any] = {
        "format": FORMAT,
        "signature": signature(onnx) if onnx is not None else None,
        "metrics": dict(metrics),
        "data": None,
        "parameters": dict(parameters),
        "run": origin(environment, started),
        "files": {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }
    return found | dict(details)


def signature(onnx_bytes: bytes) -> dict[str, Any]:
    """Inputs and outputs of an ONNX model: name, type (NumPy's names) and shape, -1 for any number."""
    import onnx
    from onnx import helper

    graph = onnx.load_model_from_string(onnx_bytes).graph
    constants = {item.name for item in graph.initializer}

    def describe(value: Any) -> dict[str, Any]:
        tensor = value.type.tensor_type
        shape = [int(dim.dim_value) if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else ""
        return {"name": value.name, "dtype": dtype, "shape": shape}

    return {
        "inputs": [describe(item) for item in graph.input if item.name not in constants],
        "outputs": [describe(item) for item in graph.output],
    }


def origin(environment: Environment, started: float, variables: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Who made it, where, when and with what; what is not known is left out."""
    image = variables.get("HEADRACE_IMAGE", "")
    now = time.time()
    facts = {
        "job": environment.job,
        "namespace": variables.get("POD_NAMESPACE", ""),
        "runId": environment.run_id,
        "pod": variables.get("POD_NAME", ""),
        "node": variables.get("HEADRACE_NODE", ""),
        "attempt": environment.attempt,
        "workers": environment.world_size,
        "image": image,
        "imageDigest": image.partition("@")[2],
        "gitCommit": git_commit(Path.cwd()),
        "startedAt": _utc(started),
        "finishedAt": _utc(now),
        "seconds": round(now - started, 1),
        "versions": {"python": platform.python_version(), **_versions("headrace", "torch", "numpy", "onnx")},
    }
    return {name: value for name, value in facts.items() if value not in ("", None)}


def git_commit(folder: Path) -> str:
    """The commit that is checked out in a folder or one above it; empty where there is none."""
    for parent in (folder, *folder.parents):
        head = parent / ".git" / "HEAD"
        try:
            text = head.read_text().strip()
            if text.startswith("ref: "):
                text = (parent / ".git" / text.removeprefix("ref: ")).read_text().strip()
        except OSError:
            continue
        return text if _COMMIT.match(text) else ""
    return ""


def data_version(uri: str) -> dict[str, Any]:
    """The version of a data set: its files with size and SHA-256, and the version of a Delta table.

    Raises:
        StorageError: it cannot be read.
    """
    store = Store.open(uri)
    entries = [entry for entry in store.list("", recursive=True) if not entry.is_folder] if store.is_folder() else None
    found: dict[str, Any] = {"uri": uri}
    if entries is None:
        content = store.read_bytes()
        found["files"] = [{"path": "", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}]
        return found
    versions = [int(match[1]) for entry in entries if (match := _DELTA.match(entry.path))]
    if versions:
        found["tableVersion"] = max(versions)
    files = [entry for entry in entries if not any(part[:1] in "._" for part in entry.path.split("/"))]
    hashed = sum(entry.size for entry in files) <= MAX_HASHED
    found["files"] = [
        {"path": entry.path, "size": entry.size}
        | ({"sha256": hashlib.sha256(store.read_bytes(entry.path)).hexdigest()} if hashed else {})
        for entry in files
    ]
    return found


def data_version_or_why(uri: str) -> dict[str, Any]:
    """`data_version`, or why it is not known: data that is gone by now costs no model."""
    try:
        return data_version(uri)
    except (StorageError, NotFound) as error:
        return {"uri": uri, "unknown": str(error)}


def _versions(*names: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
