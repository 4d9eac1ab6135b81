"""SIGTERM reaches a worker that waits in C code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

SCRIPT = """
import ctypes, sys, time
from headrace.training.interruption import Interruption
with Interruption(grace=0.2) as interruption:
    print("ready", flush=True)
    if sys.argv[1] == "in C":
        # PyDLL keeps the interpreter's lock only while calling back; this sleeps without ever returning to Python.
        ctypes.CDLL(None).sleep(30)
        ctypes.CDLL(None).sleep(30)
    else:
        while not interruption.requested:
            time.sleep(0.01)
        sys.exit(7)
"""


def stop(mode: str) -> tuple[int, float]:
    with subprocess.Popen([sys.executable, "-c", SCRIPT, mode], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        return process.wait(20), time.monotonic() - started


def test_a_worker_that_looks_ends_as_it_likes() -> None:
    code, _ = stop("in Python")
    assert code == 7


def test_a_worker_that_waits_in_c_is_ended_after_the_grace() -> None:
    code, seconds = stop("in C")
    assert code == 143
    assert seconds < 10
