"""The formats: which file each has in a folder, which library loads it, and how to tell it from others."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.serving.models import trial
from headrace.serving.models.base import Model, ModelError


@dataclass(frozen=True, slots=True)
class Format:
    """One value of `modelFormat`.

    Attributes:
        files: Names that a folder's model file may have, the preferred one first.
        module: Module here whose `load(file, threads)` makes the model.
        library: What that module imports.
        fragile: A damaged file can end the process: it is loaded in another one first.
        image: Where the library is, when it is not in every serving image.
    """

    files: tuple[str, ...]
    module: str
    library: str
    fragile: bool = False
    image: str = ""


FORMATS: Mapping[str, Format] = {
    "ONNX": Format(("model.onnx",), "onnx_model", "onnxruntime"),
    "XGBoost": Format(("model.ubj", "model.json"), "xgboost_model", "xgboost", fragile=True),
    "LightGBM": Format(("model.txt",), "lightgbm_model", "lightgbm", fragile=True),
    "ScikitLearn": Format(("model.skops",), "sklearn_model", "skops"),
    "PyTorch": Format(("model.pt2",), "torch_model", "torch", image="serving-torch"),
    "PMML": Format(("model.pmml", "model.xml"), "pmml_model", "jpype", image="serving-pmml"),
}
"""By `modelFormat`; Python has no file format."""


def load(name: str, found: Path, threads: int, trusted: Sequence[str] = ()) -> Model:
    """The model in a file, or in a folder that has one of the format's files.

    Args:
        name: `modelFormat`.
        found: What was fetched.
        threads: Threads within one run.
        trusted: Further types that a skops file may hold.

    Raises:
        ModelError: there is none, it is of another format, or it is damaged.
    """
    format_ = FORMATS[name]
    file = _file(found, format_)
    looks_like = recognise(file)
    if looks_like and looks_like != name:
        raise ModelError(f"is {_what(looks_like)}, and modelFormat is {name}: {_remedy(looks_like)}")
    if format_.fragile:
        trial.run(name, file)
    return load_file(name, file, threads, trusted)


def load_file(name: str, file: Path, threads: int, trusted: Sequence[str] = ()) -> Model:
    """The model in a file, as its library reads it.

    Raises:
        ModelError: the library is missing, or cannot read it.
    """
    format_ = FORMATS[name]
    try:
        importlib.import_module(format_.library)
    except ImportError as error:
        where = f"it is in the image {format_.image}" if format_.image else "install headrace[serving]"
        raise ModelError(f"needs the library {format_.library}, which this image has not; {where}") from error
    module: Any = importlib.import_module(f"headrace.serving.models.{format_.module}")
    model: Model = module.load(file, threads, trusted) if name == "ScikitLearn" else module.load(file, threads)
    return model


def _file(found: Path, format_: Format) -> Path:
    if found.is_file():
        return found
    for name in format_.files:
        if (found / name).is_file():
            return found / name
    names = sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file())
    listed = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    wanted = " and no ".join(format_.files)
    raise ModelError(
        f"the folder has no {wanted} (it has {listed or 'no files'}); write the model under that name, or name the "
        "file itself"
    )


def recognise(file: Path) -> str:
    """What a file is by its first bytes: a format, `pickle`, `TorchScript`, `HTML`; empty where that tells nothing."""
    with file.open("rb") as stream:
        head = stream.read(4096)
    if head[:2] == b"\x80\x04" or head[:2] == b"\x80\x05" or head[:2] == b"\x80\x03":
        return "pickle"
    if head[:4] == b"PK\x03\x04":
        return _archive(file)
    text = head.lstrip()
    if text.startswith(b"tree\n"):
        return "LightGBM"
    if text.startswith((b'{"learner"', b'{"version"')) or head.startswith(b"{L\x00\x00\x00\x00\x00\x00\x00"):
        return "XGBoost"
    if text[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "HTML"
    return "PMML" if b"<PMML" in head else ""


def _archive(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return ""
    if "schema.json" in names:
        return "ScikitLearn"
    ends = {name.rpartition("/")[2] for name in names}
    if ends & {"archive_format", "serialized_exported_program.json"} or any("/models/" in name for name in names):
        return "PyTorch"
    if "constants.pkl" in ends:
        return "TorchScript"
    return "pickle" if "data.pkl" in ends else ""


def _what(looks_like: str) -> str:
    return {
        "pickle": "a Python pickle (joblib, torch.save), which could run any code when it is loaded",
        "TorchScript": "a TorchScript archive",
        "HTML": "a web page",
    }.get(looks_like, f"a {looks_like} model")


def _remedy(looks_like: str) -> str:
    return {
        "pickle": "write it with skops.io.dump, torch.export.save, the library's own save_model, or as ONNX",
        "TorchScript": "export it with torch.export.save, or as ONNX",
        "HTML": "the address answers with a page and not with the file; correct it",
    }.get(looks_like, f"set modelFormat: {looks_like}, or write the model in the format that is set")
