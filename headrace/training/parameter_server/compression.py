"""Gradients made smaller for the wire, and back. Both ends know the pieces of a shard; a payload holds values alone.

- FP16 and Int8 send every value with fewer bits. Int8 rounds at random, up with the probability of the remainder, so
  that the expected value is exact (Alistarh et al. 2017, "QSGD"); each block of values has its own scale.
- TopK sends the largest values by magnitude (Lin et al. 2018, "Deep Gradient Compression").
- PowerSGD sends P and Q, of `rank` columns each, with P Q^T near the matrix: one power iteration that starts from the
  last Q (Vogels et al. 2019, "PowerSGD", algorithm 1 with one worker). Vectors and small matrices are sent as they are.

What TopK and PowerSGD leave out stays with the sender and is added to the next gradient (error feedback, Stich et al.
2018, "Sparsified SGD with Memory"): nothing is lost, it is late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from headrace.api.trainingjob import Compression
from headrace.training.parameter_server.layout import Shard

RATIO = 0.01
RANK = 2
_BLOCK = 2048
"""Values of Int8 that share a scale."""
_LARGEST = 60000.0
"""Of FP16, a little below its greatest number, 65504."""


class Codec(Protocol):
    """One direction of one connection; the encoder may remember what it left out."""

    def encode(self, vector: Any) -> tuple[list[Any], Any]:
        """A vector of float32 as buffers to send, and the vector that the other end will make of them."""

    def decode(self, payload: Any) -> Any:
        """The vector that was sent: float32 on the CPU.

        Raises:
            ValueError: the payload is not of this codec and shard.
        """


def codec(compression: Compression, shard: Shard, memory: bool = True) -> Codec:
    """The codec of one shard.

    Args:
        compression: Type and strength.
        shard: What is sent, all of it at once.
        memory: What is left out of one vector is added to the next (TopK, PowerSGD).
    """
    if compression.type == "TopK":
        return TopK(shard.size, compression.ratio or RATIO, memory)
    if compression.type == "PowerSGD":
        return PowerSGD(shard.matrices, compression.rank or RANK, memory)
    if compression.type == "FP16":
        return FP16(shard.size)
    if compression.type == "Int8":
        return Int8(shard.size)
    return Plain(shard.size)


def buffer_of(tensor: Any) -> Any:
    """The bytes of a tensor, on the CPU."""
    return memoryview(tensor.detach().cpu().contiguous().numpy()).cast("B") if tensor.numel() else memoryview(b"")


def tensor_of(payload: Any, dtype: Any) -> Any:
    """A tensor that shares the payload's memory."""
    import torch

    return torch.frombuffer(payload, dtype=dtype) if len(payload) else torch.empty(0, dtype=dtype)


def _check(payload: Any, expected: int) -> None:
    if len(payload) != expected:
        raise ValueError(f"a payload of {len(payload)} bytes where {expected} were expected")


class Plain:
    """float32 as it is."""

    def __init__(self, size: int) -> None:
        self._size = size

    def encode(self, vector: Any) -> tuple[list[Any], Any]:
        return [buffer_of(vector)], vector

    def decode(self, payload: Any) -> Any:
        import torch

        _check(payload, 4 * self._size)
        return tensor_of(payload, torch.float32)


class FP16:
    """Half precision, scaled so that the largest value is the largest that it can hold."""

    def __init__(self, size: int) -> None:
        self._size = size

    def encode(self, vector: Any) -> tuple[list[Any], Any]:
        import torch

        if not self._size:
            return [], vector
        scale = (vector.abs().max() / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny).reshape(1)
        halves = (vector / scale).to(torch.float16)
        return [buffer_of(scale), buffer_of(halves)], halves.to(torch.float32) * scale

    def decode(self, payload: Any) -> Any:
        import torch

        if not self._size:
            return torch.empty(0)
        _check(payload, 4 + 2 * self._size)
        scale, halves = tensor_of(payload[:4], torch.float32), tensor_of(payload[4:], torch.float16)
        return halves.to(torch.float32) * scale


class Int8:
    """Integers from -127 to 127 per block of values, rounded at random."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._blocks = math.ceil(size / _BLOCK)

    def encode(self, vector: Any) -> tuple[list[Any], Any]:
        import torch

        padded = torch.nn.functional.pad(vector, (0, self._blocks * _BLOCK - self._size)).view(-1, _BLOCK)
        scales = (padded.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        scaled = padded / scales
        whole = (scaled + torch.rand_like(scaled)).floor_().clamp_(-127, 127).to(torch.int8)
        sent = (whole.to(torch.float32) * scales).view(-1)[: self._size]
        return [buffer_of(scales), buffer_of(whole.view(-1)[: self._size])], sent

    def decode(self, payload: Any) -> Any:
        import torch

        _check(payload, 4 * self._blocks + self._size)
        scales = tensor_of(payload[: 4 * self._blocks], torch.float32)
        whole = tensor_of(payload[4 * self._blocks :], torch.int8).to(torch.float32)
        return whole.mul_(scales.repeat_interleave(_BLOCK)[: self._size])


class TopK:
    """The largest values and where they are; the rest waits."""

    def __init__(self, size: int, ratio: float, memory: bool = True) -> None:
        self._size = size
        self._memory = memory
        self.kept = min(size, max(1, math.ceil(ratio * size)))
        self._left: Any = None

    def encode(self, vector: Any) -> tuple[list[Any], Any]:
        import torch

        wanted = vector.clone() if self._left is None else self._left.add_(vector)
        where = wanted.abs().topk(self.kept, sorted=False).indices
        values = wanted[where]
        sent = torch.zeros_like(wanted)
        sent[where] = values
        if self._memory:
            wanted[where] = 0
            self._left = wanted
        return [buffer_of(where.to(torch.int32)), buffer_of(values)], sent

    def decode(self, payload: Any) -> Any:
        import torch

        _check(payload, 8 * self.kept)
        where = tensor_of(payload[: 4 * self.kept], torch.int32).to(torch.int64)
        if self.kept and not 0 <= int(where.min()) <= int(where.max()) < self._size:
            raise ValueError(f"a position outside of the shard's {self._size} values")
        vector = torch.zeros(self._size)
        vector[where] = tensor_of(payload[4 * self.kept :], torch.float32)
        return vector


class PowerSGD:
    """Two narrow matrices for each wide one; the difference waits."""

    def __init__(self, matrices: Sequence[tuple[int, int]], rank: int, memory: bool = True) -> None:
        self._memory = memory
        self._matrices = [(rows, columns, self._rank_of(rows, columns, rank)) for rows, columns in matrices]
        self._size = sum(rows * columns for rows, columns in matrices)
        self._left: Any = None
        self._bases: list[Any] = []

    @staticmethod
    def _rank_of(rows: int, columns: int, rank: int) -> int:
        """Columns of the narrow matrices; 0 where they would not be smaller."""
        return rank if rank * (rows + columns) < rows * columns else 0

    def encode(self, vector: Any) -> tuple[list[Any], Any]:
        import torch

        wanted = vector.clone() if self._left is None else self._left.add_(vector)
        sent = torch.empty_like(wanted)
        if not self._bases:
            generator = torch.Generator().manual_seed(0)
            self._bases = [
                torch.randn(columns, rank, generator=generator).to(wanted.device) if rank else None
                for _, columns, rank in self._matrices
            ]
        buffers: list[Any] = []
        start = 0
        for index, (rows, columns, rank) in enumerate(self._matrices):
            part = wanted[start : start + rows * columns]
            made = sent[start : start + rows * columns]
            start += rows * columns
            if not rank:
                made.copy_(part)
                buffers.append(buffer_of(made))
                continue
            matrix = part.view(rows, columns)
            left, _ = torch.linalg.qr(matrix @ self._bases[index])
            right = matrix.T @ left
            if bool(right.any()):
                self._bases[index] = right
            torch.mm(left, right.T, out=made.view(rows, columns))
            buffers += [buffer_of(left), buffer_of(right)]
        if self._memory:
            self._left = wanted.sub_(sent)
        return buffers, sent

    def decode(self, payload: Any) -> Any:
        import torch

        _check(payload, 4 * sum((r + c) * k if k else r * c for r, c, k in self._matrices))
        values = tensor_of(payload, torch.float32)
        vector = torch.empty(self._size)
        start = at = 0
        for rows, columns, rank in self._matrices:
            made = vector[start : start + rows * columns]
            start += rows * columns
            if not rank:
                made.copy_(values[at : at + rows * columns])
                at += rows * columns
                continue
            left = values[at : at + rows * rank].view(rows, rank)
            at += rows * rank
            right = values[at : at + columns * rank].view(columns, rank)
            at += columns * rank
            torch.mm(left, right.T, out=made.view(rows, columns))
        return vector
