"""The trained classifier as ONNX. The graph is built node by node, so it depends on no exporter's version:

    input FP32 [batch, features]
      -> standardize -> (Gemm -> Relu)* -> Gemm -> Softmax -> probabilities FP32 [batch, classes]
                                                \\-> ArgMax -> label INT64 [batch]

Standardization is a part of the model: clients send features as they are in the training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET = 17
"""ai.onnx operators; every ONNX Runtime since 1.12 (2022) runs it."""
IR_VERSION = 8
"""What goes with OPSET 17."""
INPUT, LABEL, PROBABILITIES = "input", "label", "probabilities"


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear layer: weight of shape (outputs, inputs), bias of shape (outputs,), as torch has them."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def classifier_to_onnx(
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    layers: Sequence[Layer],
    metadata: dict[str, str] | None = None,
) -> bytes:
    """The classifier as a checked ONNX model.

    Args:
        mean: Subtracted from each input, shape (features,).
        scale: Divides the result, shape (features,).
        layers: Linear layers with ReLU between them; the last one's outputs are the logits.
        metadata: Kept in the model's metadata_props.

    Returns:
        The serialized ModelProto.

    Raises:
        onnx.checker.ValidationError: the shapes do not fit together.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Sub", [INPUT, "mean"], ["centered"], name="center"),
        helper.make_node("Div", ["centered", "scale"], ["hidden_0"], name="standardize"),
    ]
    constants: list[Any] = [numpy_helper.from_array(mean, "mean"), numpy_helper.from_array(scale, "scale")]
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        linear = "logits" if last else f"linear_{index}"
        names = [f"hidden_{index}", f"weight_{index}", f"bias_{index}"]
        constants += [
            numpy_helper.from_array(np.ascontiguousarray(layer.weight), names[1]),
            numpy_helper.from_array(np.ascontiguousarray(layer.bias), names[2]),
        ]
        nodes.append(helper.make_node("Gemm", names, [linear], name=f"layer_{index}", transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [linear], [f"hidden_{index + 1}"], name=f"relu_{index}"))
    nodes += [
        helper.make_node("Softmax", ["logits"], [PROBABILITIES], name="softmax", axis=1),
        helper.make_node("ArgMax", ["logits"], [LABEL], name="argmax", axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", len(mean)])],
        [
            helper.make_tensor_value_info(LABEL, TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", len(layers[-1].bias)]),
        ],
        constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="headrace",
    )
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
