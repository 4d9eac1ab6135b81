"""PyTorch inside the serving-torch image: answers equal the module's, and an archive cannot run code."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.api.inferenceservice import ModelSource
from headrace.serving.models.base import Model, ModelError
from headrace.serving.source import load_model
from headrace.serving.tensors import RequestError


class Classifier(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(x)
        return {"label": logits.argmax(1), "probabilities": logits.softmax(1)}


MODULE = Classifier().eval()


def exported(path: Path) -> Path:
    batch = torch.export.Dim("batch")
    program = torch.export.export(MODULE, (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, str(path))
    return path


def loaded(path: Path) -> Model:
    return load_model(ModelSource(model_format="PyTorch", storage_uri=f"file://{path}"), None, 1)


def test_it_answers_what_the_module_answers(tmp_path: Path) -> None:
    model = loaded(exported(tmp_path / "model.pt2").parent)
    assert [spec.manifest() for spec in model.inputs] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [spec.manifest() for spec in model.outputs] == [
        {"name": "label", "datatype": "INT64", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
    ]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = MODULE(torch.from_numpy(x))
    label, probabilities = model.run({"x": x}, ["label", "probabilities"])
    np.testing.assert_array_equal(label, expected["label"].numpy())
    np.testing.assert_allclose(probabilities, expected["probabilities"].detach().numpy(), rtol=1e-6)
    with pytest.raises(RequestError, match=r"'x': expected shape \[-1, 4\].*found \[2, 5\]"):
        model.run({"x": np.zeros((2, 5), np.float32)}, ["label"])


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/evil-was-here",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": Evil()}, buffer)
    return buffer.getvalue()


def graph(old: str, new: str) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        return content.replace(old.encode(), new.encode()) if name.endswith(".json") else content

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (graph("torch.ops.aten.linear.default", "torch.os.system"), "calls torch.os.system, which is no operator"),
        (graph("torch.ops.aten.linear.default", "torch.ops.aten.from_file.default"), "calls torch.ops.aten.from_file"),
        (
            graph("Symbol('s0', positive=True, integer=True)", "__import__('os').system('touch /tmp/evil-was-here')"),
            "has the size .*which is no arithmetic",
        ),
        (
            lambda name, content: pickled() if name.endswith("constants.pt") else content,
            r"serialized_constants.pt, which is more than tensors \(it asks for posix.system\)",
        ),
    ],
)
def test_an_archive_that_would_run_code_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    with (
        zipfile.ZipFile(exported(tmp_path / "good.pt2")) as good,
        zipfile.ZipFile(tmp_path / "model.pt2", "w") as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, change(name, good.read(name)))
    with pytest.raises(ModelError, match=says):
        loaded(tmp_path / "model.pt2")
    assert not Path("/tmp/evil-was-here").exists()


def test_what_is_no_such_archive(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    content = exported(tmp_path / "good.pt2").read_bytes()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(4, 3), torch.zeros(1, 4)), str(tmp_path / "script"))
    torch.save(MODULE.state_dict(), tmp_path / "weights")
    for wrong, says in (
        (content[: len(content) // 2], "is no .pt2 archive"),
        ((tmp_path / "script").read_bytes(), "is a TorchScript archive, and modelFormat is PyTorch: export it"),
        ((tmp_path / "weights").read_bytes(), "is a Python pickle .* torch.export.save"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ModelError, match=says):
            loaded(path)
