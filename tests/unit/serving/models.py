"""Small ONNX models whose answers have a closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)
BIAS = np.array([1, 2, 3], dtype=np.float32)


def _save(
    nodes: list[onnx.NodeProto], inputs: list[object], outputs: list[object], file: Path, **extra: object
) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, **extra)
    # An IR version and an opset that every ONNX Runtime of the supported range knows.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(file))
    return file


def linear(file: Path, scale: float = 1.0, rows: int | str = "batch") -> Path:
    """y[rows, 3] = x[rows, 4] @ (scale * WEIGHTS) + BIAS."""
    return _save(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 3])],
        file,
        initializer=[numpy_helper.from_array(WEIGHTS * np.float32(scale), "w"), numpy_helper.from_array(BIAS, "b")],
    )


def expected(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """What `linear` answers, by numpy in double precision."""
    return np.asarray(x, dtype=np.float64) @ (WEIGHTS.astype(np.float64) * scale) + BIAS


def two_inputs(file: Path) -> Path:
    """sum = a + b for integers whose first dimension must agree; also passes strings through."""
    return _save(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Identity", ["text"], ["same"])],
        [
            helper.make_tensor_value_info("a", TensorProto.INT64, ["n", 2]),
            helper.make_tensor_value_info("b", TensorProto.INT64, ["n", 2]),
            helper.make_tensor_value_info("text", TensorProto.STRING, ["m"]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.INT64, ["n", 2]),
            helper.make_tensor_value_info("same", TensorProto.STRING, ["m"]),
        ],
        file,
    )


def slow(file: Path) -> Path:
    """Adds one to x[rows, 1] `count` times, one by one: as slow as one likes, and to be stopped between steps."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["value", "one"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
        ],
    )
    return _save(
        [
            helper.make_node("Squeeze", ["count"], ["times"]),
            helper.make_node("Loop", ["times", "true", "x"], ["y"], body=body),
        ],
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1]),
            helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
        file,
        initializer=[
            numpy_helper.from_array(np.float32(1), "one"),
            numpy_helper.from_array(np.array(True), "true"),
        ],
    )


def sequence_output(file: Path) -> Path:
    """A model whose output is no tensor, as classifiers are exported by default."""
    return _save(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1])],
        file,
    )
