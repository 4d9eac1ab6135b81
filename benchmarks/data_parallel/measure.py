"""The two groups of processes, in turns; a process is this file with the argument `bare` or `ours`."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORKERS = 2
BLOCKS = 40
STEPS = 8
"""Of a block. The first does not count: the other group may have been in the middle of it."""
WIDTH = 256
ROWS = 128


def train(name: str, run: Any) -> None:
    """The loop; `run` is the session, or None. Worker 0 waits for its group's turns and writes the seconds of steps."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(4)]
    model = DistributedDataParallel(torch.nn.Sequential(*layers))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    parts = {"model": model, "optimizer": optimizer}
    batch = torch.randn(ROWS, WIDTH)
    if run is not None:
        run.checkpoints.restore(parts)
        run.watch(model)
    times: list[float] = []
    turn, first = Path(os.environ["TURN"]), os.environ["RANK"] == "0"
    for step in range(BLOCKS * STEPS):
        if first and step % STEPS == 0:
            if step:
                turn.write_text("ours" if name == "bare" else "bare")
            while turn.read_text() != name:
                time.sleep(0.001)
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.report(step=step + 1, steps=BLOCKS * STEPS, loss=loss, samples=ROWS)
            if run.checkpoints.due():
                run.checkpoints.save(step + 1, parts)
        if step % STEPS:
            times.append(time.perf_counter() - began)
    if first:
        turn.write_text("ours" if name == "bare" else "bare")
        Path(os.environ["RESULT"]).write_text(json.dumps(times))


def bare(folder: Path) -> list[subprocess.Popen[bytes]]:
    """The group under torchrun."""
    # Debian's PyTorch has no libuv, which torchrun's own store over TCP needs; what it meets by costs no step anything.
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={folder / 'meeting'}", "--rdzv-conf=store_type=file"]
    meet += ["--local-addr=127.0.0.1"]
    told = {"USE_LIBUV": "0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **common(folder, "bare")}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={WORKERS}", *meet, __file__, "bare"]
    return [subprocess.Popen(command, env=os.environ | told, stdout=subprocess.DEVNULL)]


def ours(folder: Path) -> list[subprocess.Popen[bytes]]:
    """The group under our agents."""
    meeting, master = port(), port()
    processes = []
    for index in range(WORKERS):
        told = {
            "HEADRACE_AGENT": json.dumps({"index": index, "workers": WORKERS, "port": meeting}),
            "MASTER_PORT": str(master),
            "HEADRACE_JOB": "bench",
            "HEADRACE_RUN_ID": "bench",
            "HEADRACE_STORAGE_URI": f"file://{folder / 'storage'}",
            "HEADRACE_CHECKPOINT_INTERVAL": "5s",
            "POD_UID": str(index),
            **common(folder, "ours"),
        }
        command = [sys.executable, "-m", "headrace.training.agent", "--", sys.executable, __file__, "ours"]
        processes.append(subprocess.Popen(command, env=os.environ | told, stdout=subprocess.DEVNULL))
    return processes


def common(folder: Path, name: str) -> dict[str, str]:
    """Environment of both groups."""
    files = {"RESULT": str(folder / name), "TURN": str(folder / "turn")}
    return {**files, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def port() -> int:
    """A free one."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number: int = sock.getsockname()[1]
    return number


def main() -> None:
    """Let the two take turns of some steps, and print medians over all steps that count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "turn").write_text("bare")
        if any(process.wait(900) for process in [*bare(folder), *ours(folder)]):
            sys.exit("a group failed; its words are above")
        times = {group: json.loads((folder / group).read_text()) for group in ("bare", "ours")}
    medians = {group: round(1000 * statistics.median(found), 3) for group, found in times.items()}
    fastest = {group: round(1000 * statistics.quantiles(found, n=10)[0], 3) for group, found in times.items()}
    figures = {
        "workers": WORKERS,
        "steps": BLOCKS * (STEPS - 1),
        "stepMilliseconds": medians,
        "fastestTenthMilliseconds": fastest,
        "slower": round(medians["ours"] / medians["bare"] - 1, 4),
        "slowerOfFastestTenth": round(fastest["ours"] / fastest["bare"] - 1, 4),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def start() -> None:
    """One process of a group."""
    if sys.argv[1] == "ours":
        import headrace.training

        with headrace.training.session() as run:
            train("ours", run)
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    train("bare", None)
    dist.destroy_process_group()


if __name__ == "__main__":
    start() if sys.argv[1:] else main()
