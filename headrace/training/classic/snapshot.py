"""Bytes and numpy arrays as parts of a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Snapshot:
    """What a trainer must know to go on, as a checkpoint's object: one array under each name.

    Attributes:
        arrays: What was set last, or restored.
    """

    def __init__(self, **arrays: NDArray[Any]) -> None:
        self.arrays = arrays

    def state_dict(self) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in self.arrays.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.arrays = {name: tensor.numpy() for name, tensor in state.items()}

    def set_bytes(self, name: str, data: bytes) -> None:
        """Keep bytes."""
        self.arrays[name] = np.frombuffer(data, np.uint8).copy()

    def get_bytes(self, name: str) -> bytes:
        """The bytes that `set_bytes` was given."""
        return self.arrays[name].tobytes()
