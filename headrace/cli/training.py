"""`headrace training`: what one does to a run while it runs."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from typing import Any

WORKER = "worker"


def register(subparsers: Any) -> None:
    """Add the command."""
    training: argparse.ArgumentParser = subparsers.add_parser("training", help="look into a run")
    inner = training.add_subparsers(required=True, metavar="action")
    profile = inner.add_parser(
        "profile", help="profile the next steps of a worker; prints where in storage the traces are"
    )
    profile.add_argument("job", help="name of the TrainingJob")
    profile.add_argument("-n", "--namespace", help="its namespace; by default the context's")
    profile.add_argument("--worker", type=int, default=0, help="number of the worker")
    profile.add_argument("--steps", type=int, default=5, help="steps to profile")
    profile.set_defaults(run=_profile)


def _profile(parsed: argparse.Namespace) -> int:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        print("error: kubectl is not on PATH, and it is what reaches the worker: install it", file=sys.stderr)
        return 1
    pod = f"{parsed.job}-worker-{parsed.worker}"
    namespace = ["-n", parsed.namespace] if parsed.namespace else []
    command = ["python", "-m", "headrace.training.profile", "--steps", str(parsed.steps)]
    done = subprocess.run([kubectl, *namespace, "exec", pod, "-c", WORKER, "--", *command], check=False)
    return done.returncode
