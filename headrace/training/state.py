"""A nested state of dicts, lists and tensors as plain JSON and a flat dict of tensors, and back. No pickle.

`state_dict()`s of models and optimizers are such states: `flatten` puts every tensor into one dict under its path
(`optimizer.state.0.exp_avg`), which safetensors can hold, and leaves the rest as JSON in which a marker stands for
each tensor. What JSON cannot tell apart (tuples, keys that are not strings) is marked too, so that `unflatten` gives
back an equal value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MARK = "$"


def flatten(value: Any) -> tuple[Any, dict[str, Any]]:
    """Split `value` into JSON and tensors.

    Returns:
        The JSON value, and the tensors by path. Anything with `dtype` and `shape` counts as a tensor.

    Raises:
        TypeError: something is neither a tensor nor JSON; the message names its path.
    """
    tensors: dict[str, Any] = {}
    return _split(value, "", tensors), tensors


def unflatten(tree: Any, tensors: Mapping[str, Any]) -> Any:
    """The value that `flatten` took apart.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the tree is not one that `flatten` makes.
    """
    if isinstance(tree, list):
        return [unflatten(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _MARK not in tree:
        return {key: unflatten(item, tensors) for key, item in tree.items()}
    if tree[_MARK] == "tensor":
        return tensors[tree["name"]]
    if tree[_MARK] == "tuple":
        return tuple(unflatten(item, tensors) for item in tree["items"])
    if tree[_MARK] == "dict":
        return {unflatten(key, tensors): unflatten(item, tensors) for key, item in tree["items"]}
    raise ValueError(f"unknown marker {tree[_MARK]!r} in a saved state")


def _split(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        name = path or "value"
        if name in tensors:
            name = f"{name}#{len(tensors)}"
        tensors[name] = value
        return {_MARK: "tensor", "name": name}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return {key: _split(item, _join(path, key), tensors) for key, item in value.items()}
        pairs = [[_split(key, path, tensors), _split(item, _join(path, key), tensors)] for key, item in value.items()]
        return {_MARK: "dict", "items": pairs}
    if isinstance(value, tuple):
        return {_MARK: "tuple", "items": [_split(item, _join(path, i), tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_split(item, _join(path, i), tensors) for i, item in enumerate(value)]
    raise TypeError(
        f"{path or 'the state'} is a {type(value).__name__}, which a checkpoint cannot hold; "
        "use numbers, strings, lists, dicts and tensors"
    )


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
