"""Whether two models answer the same: outputs of the Open Inference Protocol, compared by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from headrace.serving.messages import Reply
from headrace.serving.tensors import DTYPES, Array, RequestError, from_binary


def difference(primary: Reply, other: Reply, absolute: float, relative: float) -> str:
    """How the other answer differs; empty where it does not.

    Floats are the same when |other - primary| <= absolute + relative * |primary| (numpy.isclose), NaN where NaN is. All
    other types must be equal.
    """
    try:
        mine, others = _outputs(primary), _outputs(other)
    except (RequestError, ValueError, KeyError, TypeError) as error:
        return f"an answer cannot be read: {error or type(error).__name__}"
    if mine.keys() != others.keys():
        return f"outputs are {sorted(others)}, not {sorted(mine)}"
    for name, array in mine.items():
        found = others[name]
        if found.shape != array.shape or found.dtype != array.dtype:
            return f"output {name!r} is {found.dtype}{list(found.shape)}, not {array.dtype}{list(array.shape)}"
        if array.dtype.kind == "f":
            wide, others_wide = array.astype(np.float64), found.astype(np.float64)
            same = np.isclose(others_wide, wide, rtol=relative, atol=absolute, equal_nan=True)
            if not same.all():
                worst = float(np.nanmax(np.abs(np.where(same, 0.0, others_wide - wide))))
                return f"output {name!r}: {int((~same).sum())} of {array.size} values differ, by up to {worst:.4g}"
        elif not np.array_equal(array, found):
            return f"output {name!r}: {int((array != found).sum())} of {array.size} values differ"
    return ""


def _outputs(reply: Reply) -> Mapping[str, Array]:
    length = len(reply.body) if reply.json_length is None else int(reply.json_length)
    document = orjson.loads(reply.body[:length])
    binary = memoryview(reply.body)[length:]
    found: dict[str, Array] = {}
    at = 0
    for output in document["outputs"]:
        name, datatype, shape = output["name"], output["datatype"], output["shape"]
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            found[name] = _from_json(datatype, shape, output["data"])
        else:
            found[name] = from_binary(name, datatype, shape, binary[at : at + size])
            at += size
    return found


def _from_json(datatype: str, shape: list[int], data: Any) -> Array:
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        # null is how JSON writes NaN.
        return np.array(data, dtype=np.float64).astype(dtype).reshape(shape)
    return np.array(data, dtype=dtype).reshape(shape)
