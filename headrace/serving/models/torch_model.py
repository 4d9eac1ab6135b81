"""PyTorch by torch.export: a graph of named operators and its weights, run without the code that made them.

torch.export.load itself would unpickle whatever is in the archive, evaluate its symbolic sizes as Python and look its
operators up anywhere below `torch`. So the archive is read before: weights must be what torch's own restricted reader
takes, sizes plain arithmetic, operators of the known libraries.
"""

from __future__ import annotations

import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.serving.models.base import ModelError, Stop, Stopped, one_line
from headrace.serving.protocol import TensorSpec, check_inputs
from headrace.serving.tensors import Array, RequestError

PLATFORM = "pytorch_torch_export"
_DATATYPES = {
    "torch.bool": "BOOL",
    "torch.uint8": "UINT8",
    "torch.int8": "INT8",
    "torch.int16": "INT16",
    "torch.int32": "INT32",
    "torch.int64": "INT64",
    "torch.float16": "FP16",
    "torch.float32": "FP32",
    "torch.float64": "FP64",
}
_OPERATOR = re.compile(
    r"^(torch\.ops\.(aten|prims|higher_order|quantized|quantized_decomposed|torchvision)\.(?!from_file|save)\w[\w.]*"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|pos|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(max|min|int|float|ite|not|sqrt))$"
)
_SYMBOL = re.compile(r"Symbol\('\w+'(, (positive|integer|nonnegative|real)=(True|False))*\)")
_ARITHMETIC = re.compile(
    r"((\d+(\.\d+)?|[su]\d+|True|False|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv"
    r"|IntTrueDiv|FloatTrueDiv|ModularIndexing|TruncToInt|CeilToInt|FloorToInt|ToFloat|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Where)"
    r"|[-+*/(), <>=~&|])*"
)
"""What a size may be made of: numbers, sizes and sympy's arithmetic. Whatever else stands there is run as Python."""


def load(file: Path, threads: int) -> TorchModel:
    """The program in a .pt2 file.

    Raises:
        ModelError: it is none, or holds what is not taken from a file.
    """
    import torch

    check(file)
    torch.set_num_threads(threads)
    try:
        program = torch.export.load(str(file))
        return TorchModel(program)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"is no program that PyTorch {torch.__version__} can load: {one_line(error)}; write it with "
            "torch.export.save of a version not newer than this"
        ) from error


def check(file: Path) -> None:
    """Look at an archive before torch does.

    Raises:
        ModelError: it holds what is not taken from a file.
    """
    import torch

    try:
        with zipfile.ZipFile(file) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"is no .pt2 archive: {error}; write it with torch.export.save") from error
    for name, content in contents.items():
        if name.endswith((".pt", ".pth", ".pkl")) and content:
            try:
                torch.load(io.BytesIO(content), weights_only=True)
            except Exception as error:
                asks = re.search(r"GLOBAL ([\w.]+)", str(error))
                raise ModelError(
                    f"has {name}, which is more than tensors{f' (it asks for {asks[1]})' if asks else ''}: loading it "
                    "could run any code; export a model whose constants are tensors, or as ONNX"
                ) from error
        elif name.endswith(".json"):
            try:
                document = json.loads(content)
            except ValueError as error:
                raise ModelError(f"has {name}, which is no JSON; write it again with torch.export.save") from error
            for node in _dicts(document):
                _check_node(node)


def _check_node(node: Mapping[str, Any]) -> None:
    target, size = node.get("target"), node.get("expr_str")
    if "inputs" in node and isinstance(target, str) and not _OPERATOR.match(target):
        raise ModelError(
            f"calls {target[:100]}, which is no operator that is taken from a file; export the model with operators of "
            "torch alone, or as ONNX"
        )
    if size is not None and not _ARITHMETIC.fullmatch(_SYMBOL.sub("1", str(size))):
        raise ModelError(f"has the size {str(size)[:100]!r}, which is no arithmetic; export the model again")


def _dicts(document: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a document."""
    if isinstance(document, list):
        for item in document:
            yield from _dicts(item)
    elif isinstance(document, dict):
        yield document
        for item in document.values():
            yield from _dicts(item)


class TorchModel:
    """A loaded program. Runs follow each other: threads within a run are torch's."""

    platform = PLATFORM

    def __init__(self, program: Any) -> None:
        import torch

        self._torch = torch
        self._module = program.module()
        self._lock = threading.Lock()
        names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        self._structure = program.call_spec.in_spec
        self.inputs = tuple(_spec(name, values[name]) for name in names)
        outputs = [name for name in program.graph_signature.user_outputs if isinstance(name, str)]
        labels = _labels(program, len(outputs))
        self.outputs = tuple(_spec(label, values[name]) for label, name in zip(labels, outputs, strict=True))
        self.output_names = tuple(labels)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], stop: Stop | None = None) -> list[Array]:
        """See `Model.run`."""
        torch = self._torch
        check_inputs(self.inputs, inputs)
        leaves = [torch.from_numpy(np.array(inputs[spec.name])) for spec in self.inputs]
        args, kwargs = torch.utils._pytree.tree_unflatten(leaves, self._structure)
        with self._lock, torch.inference_mode():
            if stop is not None and stop.stopped:
                raise Stopped
            try:
                found = torch.utils._pytree.tree_leaves(self._module(*args, **kwargs))
            except (RuntimeError, ValueError) as error:
                if "guard" in str(error).lower() or "expected input" in str(error).lower():
                    raise RequestError(f"the model refuses the input: {one_line(error, 300)}") from error
                raise
        tensors = dict(zip(self.output_names, (t for t in found if isinstance(t, torch.Tensor)), strict=True))
        return [tensors[name].detach().cpu().numpy() for name in outputs]


def _labels(program: Any, count: int) -> list[str]:
    """Names of the outputs: the keys of a dict, else output, or output_0, output_1, …"""
    keys = getattr(program.call_spec.out_spec, "context", None)
    if isinstance(keys, list) and len(keys) == count and all(isinstance(key, str) for key in keys):
        return keys
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _spec(name: str, value: Any) -> TensorSpec:
    datatype = _DATATYPES.get(str(getattr(value, "dtype", None)))
    if datatype is None:
        raise ModelError(
            f"has {name!r} of type {getattr(value, 'dtype', type(value).__name__)}, which the protocol cannot carry; "
            f"export it with tensors of {', '.join(_DATATYPES.values())}"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    symbols = tuple(None if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(name, datatype, shape, symbols)
