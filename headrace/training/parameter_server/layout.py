"""Which server holds which part of a model: contiguous rows of its tensors, equal shares of all values.

The tensors of a model, laid end to end, are cut into as many parts as there are servers; a cut falls between two rows
(first dimension) of a tensor, so that every part of a tensor is still a matrix, which low-rank compression needs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one tensor, which is taken as a matrix of its first dimension by all others.

    Attributes:
        tensor: Index of the tensor.
        start: First row.
        stop: Row after the last.
        columns: Values of a row.
    """

    tensor: int
    start: int
    stop: int
    columns: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def size(self) -> int:
        """Values."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Shard:
    """What one server holds: its pieces end to end, as one vector."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Values."""
        return sum(piece.size for piece in self.pieces)

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each piece."""
        return tuple((piece.rows, piece.columns) for piece in self.pieces)


def shards(shapes: Sequence[Sequence[int]], servers: int) -> tuple[Shard, ...]:
    """Cut a model into one part per server.

    Args:
        shapes: Shape of each tensor; a scalar has the shape ().
        servers: Number of parts; where there are fewer rows than servers, some get nothing.

    >>> [shard.size for shard in shards([(4, 3), (4,)], 2)]
    [9, 7]
    """
    total = sum(math.prod(shape) for shape in shapes)
    pieces: list[list[Piece]] = [[] for _ in range(servers)]
    begin = 0
    for index, shape in enumerate(shapes):
        rows = shape[0] if shape else 1
        columns = math.prod(shape[1:])
        if not rows * columns:
            continue
        row = 0
        while row < rows:
            server = min(servers - 1, (begin + row * columns) * servers // total)
            # The first row that starts at or after the server's last value belongs to the next one.
            stop = rows
            if server < servers - 1:
                stop = min(rows, -((begin * servers - (server + 1) * total) // (columns * servers)))
            pieces[server].append(Piece(index, row, stop, columns))
            row = stop
        begin += rows * columns
    return tuple(Shard(tuple(part)) for part in pieces)


def digest(shapes: Sequence[Sequence[int]], names: Sequence[str], servers: int) -> str:
    """Equal for equal models on equally many servers: a shard fits no other one's checkpoint."""
    text = json.dumps([list(map(list, shapes)), list(names), servers])
    return hashlib.sha256(text.encode()).hexdigest()
