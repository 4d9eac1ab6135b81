"""Loading a file in another process first, for libraries that a damaged file makes abort, crash or go round for ever.

LightGBM's reader of text and XGBoost's of UBJSON are such: of a hundred damaged files most ended the process. In a
router that would be the end of every other step of the chain.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from headrace.serving.models.base import ModelError

LIMIT = 120.0
"""Seconds that loading and one answer may take."""
REFUSED = 3
"""Exit code when the library said what is wrong; its words are on standard output."""


def run(name: str, file: Path, limit: float = LIMIT) -> None:
    """Load the file in another process and ask it about one row.

    Args:
        name: `modelFormat`.
        file: The model.
        limit: Seconds.

    Raises:
        ModelError: it cannot be loaded.
    """
    command = [sys.executable, "-m", "headrace.serving.models.trial", name, str(file)]
    # One thread: the trial must not take the CPUs of those who answer.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"is damaged: {name} did not come to an end reading it in {limit:g} s; write it again"
        ) from None
    if done.returncode == 0:
        return
    if done.returncode == REFUSED:
        raise ModelError(done.stdout.decode(errors="replace").splitlines()[-1])
    if done.returncode in (-signal.SIGKILL, -signal.SIGTERM):
        raise ModelError("could not be loaded within the container's memory; raise resources.limits.memory")
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    raise ModelError(f"is damaged: reading it crashed {name} ({how}); write it again")


def main(name: str, file: str) -> int:
    """The other process."""
    import numpy as np

    from headrace.serving.models.formats import load_file

    try:
        model = load_file(name, Path(file), 1)
        spec = model.inputs[0]
        row = np.zeros((1, max(spec.shape[1], 1)), np.float32 if spec.datatype == "FP32" else np.float64)
        model.run({spec.name: row}, model.output_names)
    except ModelError as error:
        sys.stdout.write(f"\n{error}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    # Both libraries can do without, and importing it takes most of the time.
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    sys.exit(main(*sys.argv[1:]))
