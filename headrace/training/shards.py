"""Tensors that are spread over workers (DTensor, as FSDP2 and tensor parallelism make them), in pieces and back.

A checkpoint holds each piece with its offset in the whole tensor. Whoever loads asks for the region that it needs and
puts it together from the pieces that overlap, so a run may go on with another number of workers, or with none of the
tensors spread at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Region = tuple[tuple[int, ...], tuple[int, ...]]
"""(offset, shape) in a whole tensor."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a tensor in a file: suffix of the file, offset in the whole, shape."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, entry: Sequence[Any]) -> Piece:
        """From its JSON, `[file, offset, shape]`."""
        file, offset, shape = entry
        return cls(str(file), tuple(map(int, offset)), tuple(map(int, shape)))


def is_spread(tensor: Any) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local_region(tensor: Any) -> Region:
    """Where this process's part of a DTensor is.

    Raises:
        TypeError: the parts are sums that were not added up yet.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(placement.is_partial() for placement in tensor.placements):
        raise TypeError("a tensor with Partial placement cannot be saved; redistribute it to Shard or Replicate first")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset), tuple(shape)


def is_written_here(tensor: Any) -> bool:
    """Whether this process writes its part: of several that have the same one, the first does."""
    coordinate = tensor.device_mesh.get_coordinate() or []
    return not any(
        index for index, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate()
    )


def whole_shape(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Shape of the tensor that the pieces make up."""
    ends = [[start + size for start, size in zip(p.offset, p.shape, strict=True)] for p in pieces]
    return tuple(max(sizes) for sizes in zip(*ends, strict=True))


def overlapping(pieces: Sequence[Piece], region: Region) -> list[Piece]:
    """The pieces that have something of the region."""
    return [piece for piece in pieces if _overlap(piece, region) is not None]


def assemble(pieces: Sequence[Piece], region: Region, read: Callable[[Piece], Any]) -> Any:
    """A region of a tensor, from its pieces.

    Args:
        pieces: All or those that overlap.
        region: What is wanted.
        read: The tensor of a piece.

    Raises:
        ValueError: the pieces do not cover the region.
    """
    import torch

    offset, shape = region
    result: Any = None
    covered = 0
    for piece in overlapping(pieces, region):
        found = _overlap(piece, region)
        assert found is not None
        source = read(piece)
        if result is None:
            result = torch.empty(shape, dtype=source.dtype)
        inner = [slice(a - o, b - o) for (a, b), o in zip(found, piece.offset, strict=True)]
        outer = [slice(a - o, b - o) for (a, b), o in zip(found, offset, strict=True)]
        result[tuple(outer)] = source[tuple(inner)]
        covered += _volume([b - a for a, b in found])
    if result is None or covered != _volume(shape):
        if _volume(shape) == 0 and pieces:
            return torch.empty(shape, dtype=read(pieces[0]).dtype)
        raise ValueError(f"its pieces cover {covered} of {_volume(shape)} numbers")
    return result


def spread_like(template: Any, local: Any) -> Any:
    """A DTensor with the given local part, laid out as `template`."""
    from torch.distributed.tensor import DTensor

    moved = local.to(template.to_local().device)
    return DTensor.from_local(
        moved,
        template.device_mesh,
        template.placements,
        run_check=False,
        shape=template.shape,
        stride=template.stride(),
    )


def templates(name: str, item: Any, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """DTensors of an object's state by their path in a checkpoint: how it wants them laid out.

    Args:
        name: The object's name in the checkpoint.
        item: The object; an optimizer has no state before its first step, so its parameters tell.
        tensors: Its present state, by path.
    """
    found = {path: tensor for path, tensor in tensors.items() if is_spread(tensor)}
    groups = getattr(item, "param_groups", None)
    if groups is None:
        return found
    parameters = [parameter for group in groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        if is_spread(parameter):
            found[f"objects.{name}.state.{index}."] = parameter
    return found


def template_of(path: str, shape: tuple[int, ...], known: Mapping[str, Any]) -> Any:
    """The DTensor after which a saved tensor is laid out; None where it is not spread."""
    exact = known.get(path)
    if exact is not None:
        return exact
    parameter = known.get(f"{path.rpartition('.')[0]}.")
    return parameter if parameter is not None and tuple(parameter.shape) == shape else None


def _overlap(piece: Piece, region: Region) -> list[tuple[int, int]] | None:
    """(start, end) in each dimension of what both have; None where they have nothing in common."""
    offset, shape = region
    found = [
        (max(a, b), min(a + n, b + m)) for a, n, b, m in zip(piece.offset, piece.shape, offset, shape, strict=True)
    ]
    return None if any(end <= start for start, end in found) else found


def _volume(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
