"""Boosted trees over two workers with one thread each: the trainer, and the libraries' own loop, in turns.

Timed in both: connecting the workers, binning the rows, and all rounds; not reading the data or storing the model.
Run inside the trainer image.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from benchmarks.classic import group
from benchmarks.parameter_server.machine import machine
from headrace.api.trainingjob import BoostingTrainer
from headrace.training.classic import lightgbm_booster, rows, xgboost_booster

ROWS, COLUMNS, ROUNDS, WORKERS, TIMES = 200_000, 28, 100, 2, 5
LIBRARIES = ("XGBoost", "LightGBM")


def settings(uri: str, library: str) -> dict[str, Any]:
    """Of the trainer."""
    return {"dataset": {"uri": uri, "testFraction": 0.1}, "library": library, "rounds": ROUNDS}


def write(path: Path) -> None:
    """Two classes by a smooth function of a few of the columns, with noise."""
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    score = x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + 0.5 * x[:, 3] ** 2 - 0.5 + random.standard_normal(ROWS) * 0.5
    columns: dict[str, Any] = {f"x{index}": x[:, index] for index in range(COLUMNS)}
    parquet.write_table(pyarrow.table(columns | {"label": (score > 0).astype(np.int64)}), path, row_group_size=20_000)


def bare() -> None:
    """One worker of the libraries' own distributed training; rank 0 writes the seconds."""
    rank, port, uri, target = int(os.environ["RANK"]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5])
    trainer = BoostingTrainer.model_validate(settings(uri, sys.argv[2]))
    part = rows.load(trainer.dataset, trainer.seed, rank, WORKERS, missing=True).train
    began = time.monotonic()
    if trainer.library == "XGBoost":
        bare_xgboost(xgboost_booster.parameters(trainer, 2), part, rank, port)
    else:
        bare_lightgbm(lightgbm_booster.parameters(trainer, 2), part, rank, port)
    if rank == 0:
        target.write_text(str(time.monotonic() - began))


def bare_xgboost(parameters: dict[str, Any], part: rows.Rows, rank: int, port: int) -> None:
    """As XGBoost's documentation has it."""
    import xgboost
    from xgboost.collective import CommunicatorContext
    from xgboost.tracker import RabitTracker

    tracker = RabitTracker(n_workers=WORKERS, host_ip="127.0.0.1", port=port, sortby="task") if rank == 0 else None
    if tracker is not None:
        tracker.start()
    arguments = {"dmlc_tracker_uri": "127.0.0.1", "dmlc_tracker_port": port, "dmlc_task_id": str(rank)}
    with CommunicatorContext(dmlc_communicator="rabit", **arguments):
        matrix = xgboost.QuantileDMatrix(part.features, part.labels, max_bin=parameters["max_bin"], nthread=1)
        xgboost.train(parameters, matrix, ROUNDS)
    if tracker is not None:
        tracker.wait_for()


def bare_lightgbm(parameters: dict[str, Any], part: rows.Rows, rank: int, port: int) -> None:
    """As LightGBM's documentation has it."""
    import lightgbm

    network = {
        "tree_learner": "data",
        "pre_partition": True,
        "num_machines": WORKERS,
        "machines": ",".join(f"127.0.0.1:{port + index}" for index in range(WORKERS)),
        "local_listen_port": port + rank,
    }
    data = lightgbm.Dataset(part.features, part.labels)
    lightgbm.train(parameters | network, data, ROUNDS, keep_training_booster=True).free_network()


def main() -> None:
    """Print the line."""
    found = machine() | {"benchmark": "classic boosting", "rows": ROWS, "columns": COLUMNS, "rounds": ROUNDS}
    with tempfile.TemporaryDirectory(dir="/data") as name:
        folder = Path(name)
        write(folder / "rows.parquet")
        uri = f"file://{folder}/rows.parquet"
        for library in LIBRARIES:
            seconds: dict[str, list[float]] = {"bare": [], "trainer": []}
            for index in range(TIMES):
                arguments = ["-m", "benchmarks.classic.boosting", "bare", library, str(group.free_port()), uri]
                group.run([*arguments, str(folder / "seconds")], WORKERS, folder)
                seconds["bare"].append(float((folder / "seconds").read_text()))
                said = group.trained("boosting", settings(uri, library), WORKERS, folder / f"{library}-{index}")
                seconds["trainer"].append(said["seconds"])
            # The least of several runs: whatever else runs on the machine only adds.
            least = {way: min(times) for way, times in seconds.items()}
            found[library] = {
                **{f"{way}Seconds": [round(value, 2) for value in times] for way, times in seconds.items()},
                "slowdownPercent": round(100 * (least["trainer"] / least["bare"] - 1), 1),
                "auc": said["metrics"]["auc"],
            }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    bare() if sys.argv[1:2] == ["bare"] else main()
