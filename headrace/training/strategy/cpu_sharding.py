"""Fully sharded data parallelism without a GPU.

PyTorch before 2.7 lacks three things for it on CPUs, each of which newer releases have: streams of a CPU cannot say
when they are done (there is nothing to wait for, all work is done in order), gloo has no averaging reduction (a sum
and a division are one), and gathering a layer's parameters again for the backward pass counts as changing them (on a
GPU a kernel does it that autograd does not count).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


class _Stream:
    """A CPU's stream: what was given to it is done."""

    def __init__(self, priority: int = 0) -> None:
        self.priority = priority

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None) -> Any:
        import torch

        return event or torch.cpu.Event()


class _CPU:
    """What `torch.cuda` is for a GPU, as far as sharding asks."""

    Stream = _Stream

    def __init__(self) -> None:
        import torch

        self.Event = torch.cpu.Event

    def current_stream(self, device: Any = None) -> _Stream:
        return _Stream()

    def current_device(self) -> str:
        return "cpu"

    def stream(self, stream: Any) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def on_cpu(device: Any) -> Iterator[None]:
    """While it lasts, `fully_shard` and modules that it was applied to work on `device`, CPU or not."""
    import torch

    if device.type != "cpu" or hasattr(torch.cpu.Stream, "record_event"):
        yield
        return
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state

    def copy_out(result: Any, parameters: Any, group: Any) -> None:
        original_copy_out(result, parameters, group)
        for parameter in parameters:
            for tensor in parameter.all_gather_outputs:
                torch._C._autograd._unsafe_set_version_counter(tensor, 0)

    def divide_afterwards(scatter: Any, reduce: Any, dtype: Any) -> tuple[float, float]:
        return 1.0, float(scatter.size() * (1 if reduce is None else reduce.size()))

    cpu = _CPU()
    users = (_fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state)
    handle = _fsdp_collectives._get_device_handle
    factors = _fsdp_collectives._get_gradient_divide_factors
    original_copy_out = _fsdp_param_group.foreach_all_gather_copy_out
    for module in users:
        module._get_device_handle = lambda kind: cpu
    _fsdp_collectives._get_gradient_divide_factors = divide_afterwards
    _fsdp_param_group.foreach_all_gather_copy_out = copy_out
    try:
        yield
    finally:
        for module in users:
            module._get_device_handle = handle
        _fsdp_collectives._get_gradient_divide_factors = factors
        _fsdp_param_group.foreach_all_gather_copy_out = original_copy_out
