"""Launcher MPI: any image with an MPI library and Python 3.8 starts its command with a hostfile, and without ssh.

`mpi_worker.py` is what runs in the pods. Its text is an environment variable of theirs, so that neither the image nor a
volume has to hold it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from controllers.runtime import pods
from controllers.runtime.objects import Manifest
from headrace.api.trainingjob import TrainingJob

PORT = 29402
TIMEOUT = 600
"""Seconds for all workers to come, as for torch's rendezvous."""


@cache
def agent() -> str:
    """The text of `mpi_worker.py`."""
    return Path(__file__).with_name("mpi_worker.py").read_text()


def command(job: TrainingJob) -> list[str]:
    """What every worker runs; the job's own command runs on worker 0."""
    return ["sh", "-c", 'exec python3 -c "$HEADRACE_MPI_AGENT" "$@"', "sh", *(job.spec.command or ())]


def environment(job: TrainingJob, index: int, slots: int, host: str) -> list[Manifest]:
    """What a worker is told.

    Args:
        job: The resource.
        index: Number of the worker.
        slots: Processes of each worker.
        host: Host name of a worker, with * for its number.
    """
    told = {
        "index": index,
        "workers": job.spec.num_workers,
        "slots": slots,
        "host": host,
        "port": PORT,
        "timeout": TIMEOUT,
    }
    return [
        pods.variable("HEADRACE_MPI", json.dumps(told, separators=(",", ":"))),
        pods.variable("HEADRACE_MPI_AGENT", agent()),
    ]
