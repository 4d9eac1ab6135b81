"""The servers: how each is started, and how it is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

from benchmarks.serving.environments import SERVERS, python, version

Command = Sequence[object]


def tensors(row: list[float]) -> bytes:
    """A row as the Open Inference Protocol has it."""
    tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row}
    return json.dumps({"inputs": [tensor]}).encode()


def _nothing(model: Path) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server.

    Attributes:
        name: Name in the result.
        version: Of the server.
        commands: The programs to start, from the model's file, a folder to write in and the port that is asked.
        path: Path that is asked.
        body: Makes a request's body of a row.
        environment: Variables of the programs.
    """

    name: str
    version: str
    commands: Callable[[Path, Path, int], list[Command]]
    path: str = "/v2/models/bench/infer"
    body: Callable[[list[float]], bytes] = tensors
    environment: Callable[[Path], dict[str, str]] = _nothing


def _ray(model: Path) -> dict[str, str]:
    # On a busy machine its daemons take longer to find each other than they are given.
    return {"RAY_raylet_start_wait_time_s": "200"}


def _predictor(model: Path, port: int) -> Command:
    program = (sys.executable, "-m", "headrace.serving", "predictor", "--name", "bench")
    serving = ("--host", "127.0.0.1", "--port", port, "--drain-seconds", 0, "--log-level", "error")
    return (*program, "--storage-uri", f"file://{model}", *serving)


def _routed(model: Path, folder: Path, port: int) -> list[Command]:
    chain = {
        "name": "bench",
        "namespace": "default",
        "predictor": {"host": "127.0.0.1", "port": port + 1, "timeout": "10s"},
        "fallback": [
            {
                "name": "static",
                "static": {
                    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [2], "data": [0.5, 0.5]}]
                },
            }
        ],
    }
    file = folder / "chain.json"
    file.write_text(json.dumps(chain))
    router = (sys.executable, "-m", "headrace.serving", "router", "--chain", file, "--host", "127.0.0.1")
    return [_predictor(model, port + 1), (*router, "--port", port, "--drain-seconds", 0, "--log-level", "error")]


def contestants() -> list[Contestant]:
    """All of them; environments are made where they are missing."""
    ours = installed("headrace")

    def script(name: str, file: str) -> Callable[[Path, Path, int], list[Command]]:
        interpreter = python(name)
        return lambda model, folder, port: [(interpreter, SERVERS / file, model, port)]

    bento = python("bentoml")
    serve = ("-m", "bentoml", "serve", "bentoml_service:Onnx", "--working-dir", SERVERS, "--host", "127.0.0.1")
    return [
        Contestant(
            "limit",
            installed("onnxruntime"),
            lambda model, folder, port: [(sys.executable, "-m", "benchmarks.serving.servers.bare", model, port)],
        ),
        Contestant("predictor", ours, lambda model, folder, port: [_predictor(model, port)]),
        Contestant("router+predictor", ours, _routed),
        Contestant("mlserver", version("mlserver", "mlserver"), script("mlserver", "mlserver_server.py")),
        Contestant(
            "bentoml",
            version("bentoml", "bentoml"),
            lambda model, folder, port: [(bento, *serve, "--port", port)],
            "/predict",
            lambda row: json.dumps({"x": [row]}).encode(),
            lambda model: {"BENCH_MODEL": str(model), "BENTOML_DO_NOT_TRACK": "true"},
        ),
        Contestant("ray serve", version("ray_serve", "ray"), script("ray_serve", "ray_serve_app.py"), environment=_ray),
        Contestant("kserve", version("kserve", "kserve"), script("kserve", "kserve_server.py")),
    ]
