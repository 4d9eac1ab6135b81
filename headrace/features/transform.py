"""The transform, executed: the same code for a table of a million rows and for one request's row.

`Evaluator.kept` computes what the online store keeps from columns of the source; `Evaluator.features` completes it with
the features that wait for the request. Training runs both on the joined table, a refresh the first, a request the
second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.api.featureset.expression import Call, Constant, Name, Node
from headrace.api.featureset.transform import WIDENED, Transform
from headrace.features.columns import DTYPES, Column, narrowed, widened
from headrace.features.functions import IMPLEMENTATIONS


class Evaluator:
    """Runs one transform. Columns are by name and of their declared types, all of one length."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._declared = {
            **transform.entities,
            transform.timestamp: "Timestamp",
            **transform.columns,
            **transform.inputs,
            **{item.name: item.type for item in transform.features},
        }

    @property
    def transform(self) -> Transform:
        """What is run."""
        return self._transform

    def kept(self, columns: Mapping[str, Column]) -> dict[str, Column]:
        """What the online store keeps.

        Args:
            columns: Keys, timestamp and columns of the source.
        """
        known = dict(columns)
        for item in self._transform.features:
            if not item.on_request and item.name not in known:
                known[item.name] = self._run(item.node, item.type, known)
        return {name: known[name] for name in self._transform.kept}

    def features(self, known: Mapping[str, Column], names: Sequence[str] | None = None) -> dict[str, Column]:
        """Features, those that wait for the request among them.

        Args:
            known: Keys, timestamp, request inputs, and what `kept` gives.
            names: Features to give; None for all, in the order of the spec.
        """
        wanted = [item.name for item in self._transform.features] if names is None else names
        found = dict(known)
        if any(name not in found for name in wanted):
            for item in self._transform.on_request:
                if item.name not in found:
                    found[item.name] = self._run(item.node, item.type, found)
        return {name: found[name] for name in wanted}

    def _run(self, node: Node, type_: str, known: Mapping[str, Column]) -> Column:
        rows = len(next(iter(known.values())))
        with np.errstate(all="ignore"):
            return narrowed(self._value(node, known, rows), type_)

    def _value(self, node: Node, known: Mapping[str, Column], rows: int) -> Column:
        match node:
            case Name(name=name):
                return widened(known[name], self._declared[name])
            case Constant(value=value, type=type_):
                return Column(_constant(value, type_, rows))
            case Call(function=function, arguments=arguments):
                return IMPLEMENTATIONS[function]([self._value(item, known, rows) for item in arguments])


def _constant(value: Any, type_: str, rows: int) -> Any:
    made = np.empty(rows, DTYPES[WIDENED[type_]])
    made[:] = value
    return made
