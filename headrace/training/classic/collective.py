"""Sums and concatenations of numpy arrays over the workers, by torch's process group."""

from __future__ import annotations

import os
import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.training.process_group import available_cpus
from headrace.training.running import Run


def threads() -> int:
    """Threads for the libraries: OMP_NUM_THREADS, which a job sets from the pod's CPUs, or all that there are."""
    return int(os.environ.get("OMP_NUM_THREADS") or available_cpus())


def add(run: Run, array: NDArray[Any]) -> NDArray[Any]:
    """The sum of all workers' arrays, which have the same shape; the same bytes on every worker."""
    if run.world_size == 1:
        return array
    import torch
    import torch.distributed as dist

    total = torch.from_numpy(np.ascontiguousarray(array).copy()).to(run.device)
    dist.all_reduce(total)
    summed: NDArray[Any] = total.cpu().numpy()
    return summed


def largest(run: Run, value: int) -> int:
    """The greatest of all workers' numbers."""
    return max(int(number) for number in concatenate(run, np.array([value], np.int64)))


def concatenate(run: Run, array: NDArray[Any]) -> NDArray[Any]:
    """All workers' arrays in order of rank, along the first axis, in which they may differ.

    Each is padded to the longest for the exchange.
    """
    if run.world_size == 1:
        return array
    import torch
    import torch.distributed as dist

    counts = [torch.zeros(1, dtype=torch.int64, device=run.device) for _ in range(run.world_size)]
    dist.all_gather(counts, torch.tensor([len(array)], dtype=torch.int64, device=run.device))
    longest = max(int(count) for count in counts)
    padded = np.zeros((longest, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    mine = torch.from_numpy(padded).to(run.device)
    parts = [torch.empty_like(mine) for _ in counts]
    dist.all_gather(parts, mine)
    return np.concatenate([part[: int(count)].cpu().numpy() for part, count in zip(parts, counts, strict=True)])


def concatenate_bytes(run: Run, data: bytes) -> list[bytes]:
    """Each worker's bytes, in order of rank."""
    lengths = concatenate(run, np.array([len(data)], np.int64))
    everything = concatenate(run, np.frombuffer(data, np.uint8)).tobytes()
    ends = np.cumsum(lengths)
    return [everything[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def own_address(run: Run) -> str:
    """IPv4 address at which the other workers reach this one: that of the interface that leads to rank 0."""
    master = run.environment.master
    if master is None:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # Connecting a datagram socket sends nothing; it only chooses the interface.
        sock.connect((socket.gethostbyname(master[0]), master[1]))
        return str(sock.getsockname()[0])


def exchange(run: Run, array: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[Any]:
    """Send parts of a flat array to the workers, and receive theirs, in order of rank.

    Args:
        run: The run.
        array: Parts one after another, in order of the rank that each is for.
        sizes: Length of each part, shape (world_size,).
    """
    if run.world_size == 1:
        return array
    import torch
    import torch.distributed as dist

    table = _table(run, sizes)
    received = [int(count) for count in table[:, run.rank]]
    mine = torch.from_numpy(np.ascontiguousarray(array)).to(run.device)
    result = torch.empty(sum(received), dtype=mine.dtype, device=run.device)
    dist.all_to_all_single(result, mine, received, [int(size) for size in sizes])
    exchanged: NDArray[Any] = result.cpu().numpy()
    return exchanged


def _table(run: Run, row: NDArray[np.int64]) -> NDArray[np.int64]:
    """One row of each worker, shape (world_size, columns)."""
    return concatenate(run, row.astype(np.int64)[None, :])
