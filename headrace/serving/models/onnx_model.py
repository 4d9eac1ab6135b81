"""One ONNX model under ONNX Runtime: what it takes, what it gives, and a run that can be stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from headrace.serving.models.base import ModelError, Stop, Stopped
from headrace.serving.protocol import TensorSpec, check_inputs
from headrace.serving.tensors import DTYPES, Array, RequestError

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
PLATFORM = "onnx_onnxruntime"
"""``platform`` of the model metadata, by the protocol's naming."""


def load(file: Path, threads: int) -> OnnxModel:
    """The model in a file; see `OnnxModel`."""
    return OnnxModel(file, threads)


class OnnxModel:
    """A loaded model. `run` may be called from several threads.

    Raises:
        ModelError: the file is no ONNX model that this runtime can serve.
    """

    platform = PLATFORM

    def __init__(self, file: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning thread burns the container's CPU quota, and then everything in it waits for the next period.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(
                f"is no ONNX model that ONNX Runtime {ort.__version__} can load: {_reason(error)}"
            ) from error
        self.inputs = _specs("input", self._session.get_inputs())
        self.outputs = _specs("output", self._session.get_outputs())
        self.output_names = [spec.name for spec in self.outputs]

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], stop: Stop | None = None) -> list[Array]:
        """Outputs by the names asked for.

        Raises:
            RequestError: the inputs are not what the model takes.
            Stopped: `stop` was used.
        """
        check_inputs(self.inputs, inputs)
        feeds = {name: _text(name, array) if array.dtype.kind == "O" else array for name, array in inputs.items()}
        options = None
        if stop is not None:
            if stop.stopped:
                raise Stopped
            options = ort.RunOptions()
            stop.bind(lambda: setattr(options, "terminate", True))
        try:
            found: list[Array] = self._session.run(list(outputs), feeds, options)
        except ort.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise RequestError(f"the model refuses the input: {_reason(error)}") from error
        except Exception:
            if stop is not None and stop.stopped:
                raise Stopped from None
            raise
        return found


def _text(name: str, array: Array) -> Array:
    """ONNX strings are text: the bytes of the protocol decoded."""
    try:
        values = [item.decode() for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise RequestError(f"input {name!r}: BYTES must be UTF-8 text for this model") from None
    decoded = np.empty(len(values), dtype=object)
    decoded[:] = values
    return decoded.reshape(array.shape)


def _specs(what: str, args: Sequence[Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for arg in args:
        datatype = _DATATYPES.get(arg.type)
        if datatype is None:
            remedy = (
                "export the classifier with zipmap=False"
                if arg.type.startswith("seq(map")
                else f"serve a model whose {what}s are plain tensors of {', '.join(DTYPES)}"
            )
            raise ModelError(
                f"has the {what} {arg.name!r} of type {arg.type}, which the protocol cannot carry; {remedy}"
            )
        shape = tuple(size if isinstance(size, int) else -1 for size in arg.shape)
        symbols = tuple(size if isinstance(size, str) else None for size in arg.shape)
        specs.append(TensorSpec(arg.name, datatype, shape, symbols))
    return tuple(specs)


def _reason(error: Exception) -> str:
    """ONNX Runtime's message on one line, without its bracketed prefix."""
    text = " ".join(str(error).split())
    return text.split(" : ", 2)[-1][:500] if text.startswith("[ONNXRuntimeError]") else text[:500]
