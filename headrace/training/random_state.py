"""The random generators of a process as JSON: Python's, NumPy's, torch's, and the GPU's."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np


def random_state(device: Any) -> dict[str, Any]:
    """The state of all generators of this process.

    Args:
        device: The process's `torch.device`; on CUDA its generator belongs to it.
    """
    import torch

    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [kind, _text(np.asarray(keys, np.uint32).tobytes()), int(position), int(has_gauss), float(cached)],
        "torch": _text(torch.get_rng_state().numpy().tobytes()),
    }
    if device.type == "cuda":
        state["cuda"] = _text(torch.cuda.get_rng_state(device).numpy().tobytes())
    return state


def restore_random(state: Mapping[str, Any], device: Any) -> None:
    """Go on where `random_state` was taken.

    Raises:
        KeyError, ValueError: it is no such state.
    """
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.frombuffer(_bytes(keys), np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_tensor(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_tensor(state["cuda"]), device)


def fresh_random(rank: int, step: int) -> None:
    """Generators of a worker that finds none in the checkpoint: its own, or all would draw equal dropout masks."""
    import torch

    random.seed((step << 20) + rank)
    np.random.seed(((step << 10) + rank) % 2**32)
    torch.manual_seed((step << 20) + rank)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _tensor(text: str) -> Any:
    import torch

    return torch.from_numpy(np.frombuffer(_bytes(text), np.uint8).copy())
