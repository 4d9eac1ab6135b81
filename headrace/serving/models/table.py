"""Models of tables: one input of rows and columns of numbers, and an answer for each row.

Names are those that the ONNX exporters of these libraries give (skl2onnx, onnxmltools), so a model answers alike in its
own format and as ONNX, and one can stand in for the other in a chain:

    input          [batch, columns]
    label          [batch]            classes, where the model is a classifier
    probabilities  [batch, classes]   where it gives them
    variable       [batch, targets]   numbers, where it is none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from headrace.serving.models.base import Stop, Stopped
from headrace.serving.protocol import TensorSpec, check_inputs
from headrace.serving.tensors import DTYPES, Array, datatype_of

INPUT, LABEL, PROBABILITIES, VARIABLE = "input", "label", "probabilities", "variable"

Answer = Callable[[Array, Sequence[str]], Mapping[str, Array]]
"""From rows [batch, columns] and the names of outputs asked for to the outputs, at least those."""

_WIDENS = {
    "FP32": frozenset({"FP16", "INT8", "INT16", "UINT8", "UINT16", "BOOL"}),
    "FP64": frozenset({"FP16", "FP32", "INT8", "INT16", "INT32", "UINT8", "UINT16", "UINT32", "BOOL"}),
}
"""Datatypes whose every value another one has: taking them for it changes nothing."""


@dataclass(frozen=True)
class TableModel:
    """A model of one matrix.

    Attributes:
        platform: As `Model.platform`.
        datatype: Of the input: FP32 or FP64. Narrower numbers are taken too.
        columns: Of the input; -1 where the model does not say.
        outputs: What `answer` gives.
        answer: The model itself; is not asked about no rows.
    """

    platform: str
    datatype: str
    columns: int
    outputs: tuple[TensorSpec, ...]
    answer: Answer
    output_names: tuple[str, ...] = field(init=False)
    inputs: tuple[TensorSpec, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_names", tuple(spec.name for spec in self.outputs))
        object.__setattr__(self, "inputs", (TensorSpec(INPUT, self.datatype, (-1, self.columns)),))

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], stop: Stop | None = None) -> list[Array]:
        """See `Model.run`."""
        rows = inputs.get(INPUT)
        if rows is not None and datatype_of(rows) in _WIDENS[self.datatype]:
            inputs = {**inputs, INPUT: rows.astype(DTYPES[self.datatype])}
        check_inputs(self.inputs, inputs)
        if stop is not None and stop.stopped:
            raise Stopped
        rows = inputs[INPUT]
        if not len(rows):
            return [self._nothing(name) for name in outputs]
        found = self.answer(rows, outputs)
        return [found[name] for name in outputs]

    def _nothing(self, name: str) -> Array:
        spec = next(spec for spec in self.outputs if spec.name == name)
        return np.empty((0, *(max(size, 0) for size in spec.shape[1:])), dtype=DTYPES[spec.datatype])


def classes_of(probabilities: Array) -> Array:
    """The likeliest class of each row; the lowest of several that are equally likely."""
    found: Array = probabilities.argmax(axis=1).astype(np.int64)
    return found


def two_classes(positive: Array) -> Array:
    """Probabilities [batch, 2] from those of the second class, [batch]."""
    return np.column_stack([1 - positive, positive])
