"""A model whose parameters and Adam state are spread over workers, saved by four, resumed by two, by one, by three.

`python -m tests.image.spreading <folder>` prints, for each group, the step it resumed at and the digest of the whole
model and optimizer as it saw them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import headrace.training
from tests.image.forks import Forks

SHAPES = {"embedding": (10, 6), "weight": (7, 5), "bias": (3,)}
"""Seven rows on four workers: shards differ in size, and of three rows one worker has none."""


class Net(torch.nn.Module):  # type: ignore[misc]
    """Spread over the workers along the first dimension; not at all where `spread` is false."""

    def __init__(self, spread: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if spread else None
        for name, shape in SHAPES.items():
            whole = torch.randn(shape, generator=generator)
            tensor = whole if mesh is None else distribute_tensor(whole, mesh, [Shard(0)])
            self.register_parameter(name, torch.nn.Parameter(tensor))
        self.register_buffer("seen", torch.zeros(4))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    count = dist.get_world_size()
    sizes = [part.shape for part in torch.chunk(torch.empty(tensor.shape), count)]
    parts: list[torch.Tensor] = []
    for rank, size in enumerate(sizes):  # torch.chunk makes fewer parts where there are not enough rows
        part = tensor.detach().to_local().clone() if rank == dist.get_rank() else torch.empty(size)
        dist.broadcast(part, src=rank)
        parts.append(part)
    return torch.cat(parts)


def work() -> None:
    """Resume; ROUNDS times take three steps and save."""
    torch.set_num_threads(1)
    with headrace.training.session() as run:
        net = Net(spread=os.environ["SPREAD"] == "1")
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, foreach=False)
        state = run.checkpoints.restore({"net": net, "optimizer": optimizer})
        start = state["step"] if state else 0
        found: list[list[object]] = []
        for step in range(start, start + 3 * int(os.environ["ROUNDS"]), 3):
            for _ in range(3):
                for parameter in net.parameters():
                    parameter.grad = parameter.detach() * 0.5  # element by element, so the split changes no bit
                optimizer.step()
                net.seen += 1
            run.checkpoints.save(step + 3, {"net": net, "optimizer": optimizer})
            found.append([step, digest(net, optimizer)])
        if run.rank == 0:
            Path(os.environ["RESULT"]).write_text(json.dumps(found))


def digest(net: Net, optimizer: torch.optim.Optimizer) -> str:
    """Of the whole model and the optimizer's whole state."""
    everything = [*map(whole, net.parameters()), net.seen]
    for parameter in net.parameters():
        everything += [whole(optimizer.state[parameter][key]) for key in ("exp_avg", "exp_avg_sq")]
    return hashlib.sha256(b"".join(item.contiguous().numpy().tobytes() for item in everything)).hexdigest()


def group(folder: Path, name: str, attempt: int, count: int, spread: bool, **variables: str) -> list[object]:
    """[step, digest] of each round of a group of `count` workers."""
    result = folder / f"{name}-{attempt}.json"
    settings = {"RESULT": str(result), "SPREAD": str(int(spread)), "ROUNDS": "1", **variables}
    forks = Forks(work, folder / name, f"file://{folder}/{name}/storage", count, attempt, settings).start()
    assert forks.wait(120) == [0] * count, forks.output()
    return list(json.loads(result.read_text()))


def main(folder: Path) -> None:
    everywhere = {"HEADRACE_CHECKPOINT": json.dumps({"writers": "AllRanks"})}
    plan = [(4, True), (2, True), (1, False), (3, True)]
    print(  # noqa: T201 - the caller reads it
        json.dumps(
            {
                "alone": group(folder, "alone", 1, 1, False, ROUNDS="4"),
                "spread": [group(folder, "spread", n, *what)[0] for n, what in enumerate(plan, 1)],
                "split": [group(folder, "split", n, count, False, **everywhere)[0] for n, count in ((1, 3), (2, 2))],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
