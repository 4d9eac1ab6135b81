"""PMML by pmml4s (Apache-2.0) in a Java machine inside this process.

Each active field of the model is an input of its own, [batch], and each output field an output: what the file's Output
element maps results to (labels, probabilities, transformed values, decisions) is what is served. A file with no Output
gives what PMML says of its kind: the predicted value and, of a classifier, the probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from headrace.serving.models.base import ModelError, Stop, Stopped, one_line
from headrace.serving.protocol import TensorSpec, check_inputs
from headrace.serving.tensors import DTYPES, Array, RequestError, datatype_of

PLATFORM = "pmml_pmml4s"
_DATATYPES = {"double": "FP64", "float": "FP64", "real": "FP64", "integer": "INT64", "boolean": "BOOL"}
"""By PMML's dataType; all others (string, dates and times) are text."""
_WIDENS = {"FP64": "biuf", "INT64": "iu"}
"""numpy's kinds that are taken for a datatype."""
_OPTIONS = (
    # The process has its own way to end; and the heap leaves room for Python.
    "-Xrs",
    "-XX:MaxRAMPercentage=60",
    "-XX:+UseSerialGC",
    "-Djdk.xml.entityExpansionLimit=1",
)


def load(file: Path, threads: int) -> PmmlModel:
    """The model in a file.

    Args:
        file: The PMML.
        threads: Unused: pmml4s answers a request in one thread.

    Raises:
        ModelError: it is no PMML that pmml4s takes.
    """
    content = file.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ModelError("has a DOCTYPE, which could name other files; PMML needs none: remove it")
    _start()
    import jpype

    try:
        made = jpype.JClass("org.pmml4s.model.Model").fromFile(str(file))
        return PmmlModel(made)
    except jpype.JException as error:
        raise ModelError(
            f"is no PMML that pmml4s can load: {one_line(error)}; see that it is PMML 3.0 to 4.4 and of a kind that "
            "pmml4s knows, or convert the model to ONNX"
        ) from error


def _start() -> None:
    """The Java machine, which a process has once."""
    import jpype

    if jpype.isJVMStarted():
        return
    jars = [str(item) for item in (files("pypmml") / "jars").iterdir() if item.name.endswith(".jar")]
    try:
        jpype.startJVM(*_OPTIONS, classpath=jars, convertStrings=True)
    except (OSError, jpype.JVMNotFoundException) as error:
        raise ModelError(f"needs Java, which this image has not ({one_line(error)}); it is in serving-pmml") from error


class PmmlModel:
    """A loaded model. Runs may be side by side."""

    platform = PLATFORM

    def __init__(self, made: Any) -> None:
        import jpype

        self._made = made
        self._row = jpype.JArray(jpype.JClass("java.lang.Object"))
        self.inputs = tuple(_spec(field) for field in made.inputFields())
        self.outputs = tuple(_spec(field) for field in made.outputFields())
        self.output_names = tuple(spec.name for spec in self.outputs)
        self._boxes = [_box(spec.datatype) for spec in self.inputs]

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], stop: Stop | None = None) -> list[Array]:
        """See `Model.run`. NaN is a missing value, and the model's own rules say what becomes of it."""
        import jpype

        inputs = {name: self._widened(name, array) for name, array in inputs.items()}
        check_inputs(self.inputs, inputs)
        sizes = {array.shape[0] for array in inputs.values()}
        if len(sizes) > 1:
            raise RequestError(f"the inputs have {sorted(sizes)} rows; they must agree")
        columns = [
            [box(value) for value in inputs[spec.name].tolist()]
            for spec, box in zip(self.inputs, self._boxes, strict=True)
        ]
        found: list[Any] = []
        for row in zip(*columns, strict=True):
            if stop is not None and stop.stopped:
                raise Stopped
            try:
                found.append(self._made.predict(self._row(row)))
            except jpype.JException as error:
                raise RequestError(f"the model refuses row {len(found)}: {one_line(error, 300)}") from error
        places = [self.output_names.index(name) for name in outputs]
        return [_column(self.outputs[place], [row[place] for row in found]) for place in places]

    def _widened(self, name: str, array: Array) -> Array:
        spec = next((spec for spec in self.inputs if spec.name == name), None)
        if spec is None:
            return array
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.dtype.kind in _WIDENS.get(spec.datatype, "") and datatype_of(array) != "UINT64":
            return array.astype(DTYPES[spec.datatype])
        return array


def _spec(field: Any) -> TensorSpec:
    return TensorSpec(str(field.name()), _DATATYPES.get(str(field.dataType()), "BYTES"), (-1,))


def _box(datatype: str) -> Any:
    import jpype

    if datatype == "FP64":
        return lambda value: None if value != value else jpype.JClass("java.lang.Double")(value)
    if datatype == "INT64":
        return jpype.JClass("java.lang.Long")
    if datatype == "BOOL":
        return jpype.JClass("java.lang.Boolean")

    def text(value: bytes) -> Any:
        try:
            return jpype.JString(value.decode())
        except UnicodeDecodeError:
            raise RequestError("BYTES must be UTF-8 text for this model") from None

    return text


def _column(spec: TensorSpec, values: Sequence[Any]) -> Array:
    """An output of every row; what the model leaves out is NaN, 0, False or an empty text."""
    if spec.datatype == "FP64":
        return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    if spec.datatype == "INT64":
        return np.array([0 if value is None else int(value) for value in values], dtype=np.int64)
    if spec.datatype == "BOOL":
        return np.array([bool(value) for value in values], dtype=np.bool_)
    texts = np.empty(len(values), dtype=object)
    texts[:] = ["" if value is None else str(value) for value in values]
    return texts
