"""A predictor that somebody wrote in Python: a class with `load` and `predict`, in a file of theirs.

    class Predictor:
        inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]      # optional: requests are checked by it
        outputs = [{"name": "length", "datatype": "INT64", "shape": [-1]}]

        def load(self, folder):           # optional; pathlib.Path of the model's files, None where it has none
            ...

        def predict(self, inputs):        # dict of numpy arrays -> dict of numpy arrays
            return {"length": np.array([len(item) for item in inputs["text"]])}

BYTES are arrays of `bytes`. `headrace.serving.tensors.RequestError` says that the request is wrong (HTTP 400, with its
text); any other exception is the model's failure (500, and the log has it).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from headrace.serving.models.base import ModelError, Stop, Stopped, one_line
from headrace.serving.protocol import TensorSpec, check_inputs
from headrace.serving.tensors import DTYPES, Array, datatype_of

CLASS = "Predictor"
PLATFORM = "python_headrace"
_MODULE = "headrace_predictor"


class PythonModel:
    """An object of the class in a file.

    Args:
        file: The Python file; others beside it can be imported.
        name: Name of the class.
        folder: The model's files.

    Raises:
        ModelError: there is no such class, it cannot be made, or `load` failed.
    """

    platform = PLATFORM

    def __init__(self, file: Path, name: str = CLASS, folder: Path | None = None) -> None:
        module = _imported(file)
        made = getattr(module, name, None)
        if not isinstance(made, type):
            raise ModelError(f"{file.name} has no class {name}; {_classes(module, name)}")
        try:
            predictor = made()
            load = getattr(predictor, "load", None)
            if load is not None:
                load(folder)
        except Exception as error:
            raise ModelError(f"{file.name}: {name}.load failed: {type(error).__name__}: {one_line(error)}") from error
        predict = getattr(predictor, "predict", None)
        if not callable(predict):
            raise ModelError(f"{file.name}: {name} has no predict(self, inputs); add it")
        self._predict: Callable[[dict[str, Array]], Any] = predict
        self.inputs = _specs(f"{file.name}: {name}.inputs", getattr(predictor, "inputs", ()))
        self.outputs = _specs(f"{file.name}: {name}.outputs", getattr(predictor, "outputs", ()))
        if not self.outputs:
            example = "outputs = [{'name': 'label', 'datatype': 'INT64', 'shape': [-1]}]"
            raise ModelError(f"{file.name}: {name} does not say what it gives; declare {example}")
        self.output_names = tuple(spec.name for spec in self.outputs)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], stop: Stop | None = None) -> list[Array]:
        """See `Model.run`."""
        if self.inputs:
            check_inputs(self.inputs, inputs)
        if stop is not None and stop.stopped:
            raise Stopped
        found = self._predict(dict(inputs))
        if not isinstance(found, Mapping):
            raise TypeError(f"predict returned {type(found).__name__}; return a dict of numpy arrays by output name")
        missing = [name for name in outputs if name not in found]
        if missing:
            raise TypeError(f"predict returned {', '.join(map(str, found)) or 'nothing'}, but not {missing[0]!r}")
        return [_array(name, found[name]) for name in outputs]


def _imported(file: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(_MODULE, file)
    if specification is None or specification.loader is None:
        raise ModelError(f"{file.name} is no Python file; give a name that ends with .py")
    module = importlib.util.module_from_spec(specification)
    # What it imports may lie beside it; what it defines is found by name (dataclasses, typing).
    sys.path.insert(0, str(file.parent))
    sys.modules[_MODULE] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"{file.name} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    return module


def _classes(module: ModuleType, name: str) -> str:
    found = [key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == _MODULE]
    if found:
        return f"it has {', '.join(found)}: name one in model.code.className"
    return f"define one: class {name} with predict(self, inputs)"


def _specs(what: str, declared: Any) -> tuple[TensorSpec, ...]:
    specs = []
    try:
        for item in declared:
            datatype, shape = item["datatype"], tuple(int(size) for size in item["shape"])
            if datatype not in DTYPES:
                raise ModelError(f"{what}: datatype {datatype!r} is none of {', '.join(DTYPES)}")
            specs.append(TensorSpec(str(item["name"]), datatype, shape))
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(
            f"{what} is {declared!r}; make it a list of {{'name': …, 'datatype': …, 'shape': […]}}"
        ) from error
    return tuple(specs)


def _array(name: str, value: Any) -> Array:
    found = np.asarray(value)
    if found.dtype.kind in "US":
        found = found.astype(object)
    try:
        datatype_of(found)
    except KeyError:
        raise TypeError(f"predict returned {name!r} of {found.dtype}, which the protocol cannot carry") from None
    return found
