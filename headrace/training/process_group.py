"""Meeting the other workers: threads, device, backend and torch's default process group.

The backend is found, not configured: NCCL where there is a CUDA device, gloo otherwise. Both reduce gradients along a
ring: it is gloo's algorithm for all-reduce, and NCCL is told so.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from headrace.training.environment import Environment
from headrace.training.errors import ConfigurationError

logger = logging.getLogger(__name__)

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CHUNK = 64 << 20
"""Bytes of one broadcast: bounds the memory that a transfer takes besides its data."""


@dataclass(frozen=True, slots=True)
class Group:
    """What a process has after `join`: its `torch.device`, and the backend, nccl or gloo."""

    device: Any
    backend: str


def available_cpus(cpu_max: Path = CGROUP_CPU_MAX) -> int:
    """Whole CPUs that this container may use at once, at least 1: the cgroup's quota or the affinity mask.

    torch counts the node's CPUs, and as many threads under a smaller quota mostly wait for each other.
    """
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.floor(int(quota) / int(period))))


def join(environment: Environment) -> Group:
    """Wait for all workers and make torch's default process group.

    Raises:
        ConfigurationError: GPUs were asked for and torch sees none, or fewer than processes.
        RuntimeError: the workers did not all appear in time, or the group could not be made (torch's error).
    """
    if environment.topology.type == "ParameterServer":
        # Workers have only the servers in common, and may come and go: each is a group of its own.
        environment = replace(environment, rank=0, world_size=1, master=None)
    # Read when OpenMP is loaded. Threads that spin at barriers slow small steps fiftyfold where CPUs are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    import torch.distributed as dist

    threads = 0
    if not os.environ.get("OMP_NUM_THREADS"):
        threads = max(1, available_cpus() // environment.local_world_size)
        torch.set_num_threads(threads)
    backend, device = _backend(environment)
    if backend == "nccl":
        os.environ.setdefault("NCCL_ALGO", "Ring")
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
        torch.cuda.set_device(device)
    store: Any = None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        logger.info("worker %d of %d: torchrun keeps the store", environment.rank, environment.world_size)
    elif environment.master is None:
        store = dist.HashStore()
    else:
        host, port = environment.master
        logger.info(
            "worker %d of %d: waiting for all workers at %s:%d (at most %g s)",
            environment.rank,
            environment.world_size,
            host,
            port,
            environment.rendezvous_timeout,
        )
        store = dist.TCPStore(
            host,
            port,
            environment.world_size,
            is_master=environment.rank == 0,
            timeout=timedelta(seconds=environment.rendezvous_timeout),
            wait_for_workers=True,
            use_libuv=False,  # Debian's PyTorch is built without it, and so are others.
        )
    dist.init_process_group(
        backend,
        store=store,
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timedelta(seconds=environment.collective_timeout),
    )
    logger.info(
        "worker %d of %d joined: backend %s, device %s, torch %s, %d CPU threads, ring all-reduce",
        environment.rank,
        environment.world_size,
        backend,
        device,
        torch.__version__,
        threads or torch.get_num_threads(),
    )
    return Group(device, backend)


def leave() -> None:
    """Take the default process group down, where there is one."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    backend = None
    if dist.get_backend() == "gloo" and dist.group.WORLD is not None:
        # A thread of gloo that lets go of a collective's last tensor needs the interpreter's lock. torch's registry
        # would destroy gloo with that lock held, waiting for the thread, and both would wait for ever. Whoever holds
        # the backend itself lets go of it without the lock.
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    dist.destroy_process_group()
    del backend


def broadcast_bytes(data: bytes | None, device: Any, source: int = 0) -> bytes:
    """The `data` of rank `source` on every rank; the others pass None."""
    import numpy as np
    import torch
    import torch.distributed as dist

    if dist.get_world_size() == 1:
        return data or b""
    size = torch.tensor([len(data) if data is not None else 0], dtype=torch.int64, device=device)
    dist.broadcast(size, src=source)
    buffer = np.frombuffer(data, np.uint8).copy() if data is not None else np.empty(int(size.item()), np.uint8)
    for start in range(0, len(buffer), _CHUNK):
        part = torch.from_numpy(buffer[start : start + _CHUNK])
        moved = part.to(device)
        dist.broadcast(moved, src=source)
        if data is None:
            part.copy_(moved)
    return buffer.tobytes()


def greatest(values: Sequence[int], device: Any) -> list[int]:
    """The greatest of each of the numbers over all ranks. Collective."""
    import torch
    import torch.distributed as dist

    if dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    found: list[int] = tensor.tolist()
    return found


def _backend(environment: Environment) -> tuple[str, Any]:
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available() and dist.is_nccl_available():
        count = torch.cuda.device_count()
        if environment.local_rank >= count:
            raise ConfigurationError(
                "gpu.count",
                f"process {environment.local_rank} of this pod has no GPU: torch sees {count}",
                "start as many processes per worker as it has GPUs",
            )
        return "nccl", torch.device("cuda", environment.local_rank)
    given = os.environ.get("NVIDIA_VISIBLE_DEVICES", "")
    if given.startswith(("GPU-", "MIG-")):
        raise ConfigurationError(
            "image",
            f"the pod was given the GPU {given} and torch {torch.__version__} of this image cannot use it",
            "set an image whose PyTorch is built for CUDA, or remove gpu",
        )
    return "gloo", torch.device("cpu")
