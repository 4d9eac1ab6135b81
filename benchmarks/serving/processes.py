"""Programs with all that they start: their CPU time, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

Program = subprocess.Popen[bytes]
TICK = os.sysconf("SC_CLK_TCK")


def _table() -> dict[int, tuple[int, float]]:
    """Parent and CPU seconds of every process, its ended and awaited children included."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15])) / TICK
    return found


def family(roots: Sequence[int]) -> dict[int, float]:
    """CPU seconds of each process among `roots` and all that descend from them."""
    table = _table()
    members = {pid for pid in roots if pid in table}
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in table.items() if parent in members} - members
        members |= more
        grown = bool(more)
    return {pid: table[pid][1] for pid in members}


def start(commands: Sequence[Sequence[object]], environment: Mapping[str, str], log: IO[bytes]) -> list[Program]:
    """Start programs whose output goes to `log`."""
    return [subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log) for command in commands]


def end(programs: Sequence[Program], patience: float = 15.0) -> None:
    """End programs and all that descends from them."""
    members = family([program.pid for program in programs])
    for program in programs:
        program.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + patience
    for program in programs:
        try:
            program.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
    for pid in members:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
