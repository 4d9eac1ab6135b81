"""Loading and running a model: its metadata, its numbers, its refusals, and stopping it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from headrace.api.inferenceservice import ModelSource
from headrace.serving.models.base import Model, ModelError, Stop, Stopped
from headrace.serving.models.onnx_model import OnnxModel
from headrace.serving.source import load_model
from headrace.serving.tensors import RequestError
from tests.unit.serving import models


def loaded(uri: str) -> Model:
    return load_model(ModelSource(storage_uri=uri), None, 1)


def test_numbers_and_signature_of_a_linear_model(tmp_path: Path) -> None:
    model = OnnxModel(models.linear(tmp_path / "m.onnx"), 1)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    (y,) = model.run({"x": x}, ["y"])
    np.testing.assert_allclose(y, models.expected(x), rtol=1e-5)
    assert [spec.manifest() for spec in model.inputs] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [spec.manifest() for spec in model.outputs] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]


def test_an_empty_batch_has_an_empty_answer(tmp_path: Path) -> None:
    (y,) = OnnxModel(models.linear(tmp_path / "m.onnx"), 1).run({"x": np.zeros((0, 4), np.float32)}, ["y"])
    assert y.shape == (0, 3)


def test_text_in_and_out_and_only_the_outputs_asked_for(tmp_path: Path) -> None:
    model = OnnxModel(models.two_inputs(tmp_path / "m.onnx"), 1)
    inputs = {
        "a": np.array([[1, 2]]),
        "b": np.array([[10, 2**62]]),
        "text": np.array(["é".encode(), b""], dtype=object),
    }
    assert model.run(inputs, ["same"])[0].tolist() == ["é", ""]
    assert model.run(inputs, ["sum"])[0].tolist() == [[11, 2 + 2**62]]
    with pytest.raises(RequestError, match=r"'text'.*UTF-8"):
        model.run(inputs | {"text": np.array([b"\xff"], dtype=object)}, ["same"])


def test_a_run_is_stopped_between_nodes(tmp_path: Path) -> None:
    model = OnnxModel(models.slow(tmp_path / "m.onnx"), 1)
    inputs = {"x": np.zeros((1, 1), np.float32), "count": np.array([200_000_000])}
    stop = Stop()
    timer = threading.Timer(0.2, stop.stop)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        model.run(inputs, ["y"], stop)
    # The whole run would take minutes.
    assert time.monotonic() - began < 10
    with pytest.raises(Stopped):
        model.run(inputs, ["y"], stop)


def test_a_model_whose_output_is_no_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"output 'y'.*seq.*plain tensors"):
        OnnxModel(models.sequence_output(tmp_path / "m.onnx"), 1)


def test_what_lies_at_the_uri_and_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"file://.*/model.onnx: is no ONNX model"):
        loaded(f"file://{tmp_path}/model.onnx")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no model.onnx \(it has weights.bin\)"):
        loaded(f"file://{tmp_path}/other")
    with pytest.raises(ModelError, match=r"file://.*/nowhere"):
        loaded(f"file://{tmp_path}/nowhere")


def test_a_folder_with_a_model(tmp_path: Path) -> None:
    models.linear(tmp_path / "model.onnx")
    assert loaded(f"file://{tmp_path}").output_names == ["y"]
