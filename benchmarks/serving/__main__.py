"""This service beside other model servers: `python -m benchmarks.serving [--rounds 2] [--only NAME …]`.

The same scikit-learn model, exported to ONNX and run by ONNX Runtime with one thread, is served by each in turn, in
several rounds, and asked over loopback for one row at a time in JSON by the same load generator. Each server is the
fastest of its simple deployments: one process that answers, none beside where there is a choice, logs of requests off.

- throughput: `CONNECTIONS` connections send their next request when the last one is answered. Requests per second of
  CPU time of all of a server's processes are what it does per core, whatever else the machine does;
- latency: the same number of requests a second for all (`RATE`), counted from when each was due.

Prints one JSON line per server, and one that compares.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.serving.contestants import Contestant, contestants
from benchmarks.serving.load import closed_loop, one, open_loop
from benchmarks.serving.processes import end, family, start

CONNECTIONS = 8
RATE = 100.0
"""Requests a second of the measurement of latency."""
SECONDS = 5.0
"""Of each measurement in each round."""
WARM_UP = 2.0
OURS = ("predictor", "router+predictor")
LIMIT = "limit"


def export(file: Path) -> tuple[list[float], list[float]]:
    """Train and export the model; returns a row to ask for, and scikit-learn's probabilities of its classes."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=50, random_state=0)).fit(x, y)
    exported = to_onnx(model, x[:1].astype(np.float32), options={"zipmap": False}, target_opset=17)
    # One output, so that all answer the same whether or not they are told which.
    for output in list(exported.graph.output):
        if output.name != "probabilities":
            exported.graph.output.remove(output)
    exported.graph.input[0].name = "x"
    for node in exported.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = "x" if name == "X" else name
    file.write_bytes(exported.SerializeToString())
    row = [round(float(value), 4) for value in x[0]]
    return row, [float(value) for value in model.predict_proba([row])[0]]


def free_port() -> int:
    """A port that nobody listens at now, as those after it hopefully."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def right_answer(port: int, message: bytes, expected: list[float], patience: float = 240.0) -> None:
    """Wait until a server answers what scikit-learn does.

    Raises:
        RuntimeError: it did not in `patience` seconds; with its last answer.
    """
    last = "no connection"
    try:
        async with asyncio.timeout(patience):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    status, body = await one(reader, writer, message)
                    writer.close()
                    if status == 200 and np.allclose(probabilities(body), expected, rtol=1e-4):
                        return
                    last = f"HTTP {status}: {body[:300]!r}"
                except (OSError, asyncio.IncompleteReadError) as error:
                    last = repr(error)
                await asyncio.sleep(0.25)
    except TimeoutError:
        raise RuntimeError(f"not ready in {patience:g} s: {last}") from None


def probabilities(body: bytes) -> list[float]:
    """The answer's numbers, as any of the servers writes them."""
    found = json.loads(body)
    values = found["outputs"][0]["data"] if isinstance(found, dict) else found[0]
    return [float(value) for value in values]


async def turn(
    contestant: Contestant, model: Path, row: list[float], expected: list[float], figures: dict[str, list[Any]]
) -> None:
    """Start a server, measure it once, and end it."""
    port = free_port()
    body = contestant.body(row)
    head = f"POST {contestant.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    message = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        environment = {**os.environ, **contestant.environment(model)}
        programs = start(contestant.commands(model, Path(folder), port), environment, log)
        try:
            await right_answer(port, message, expected)
            roots = [program.pid for program in programs]
            await closed_loop(port, message, CONNECTIONS, WARM_UP)
            before = family(roots)
            outcome = await closed_loop(port, message, CONNECTIONS, SECONDS)
            after = family(roots)
            cpu = sum(spent - before.get(pid, 0.0) for pid, spent in after.items())
            figures["requests"].append(len(outcome.seconds))
            figures["cpu"].append(cpu)
            figures["elapsed"].append(outcome.elapsed)
            failed = outcome.failed
            outcome = await open_loop(port, message, CONNECTIONS, RATE, SECONDS)
            figures["latency"].extend(outcome.seconds)
            figures["failed"].append(failed + outcome.failed)
        except RuntimeError:
            sys.stderr.write((Path(folder) / "log").read_text(errors="replace")[-3000:])
            raise
        finally:
            await asyncio.to_thread(end, programs)


def summary(contestant: Contestant, figures: dict[str, list[Any]]) -> dict[str, Any]:
    """The figures of all rounds of one server."""
    requests, cpu = sum(figures["requests"]), sum(figures["cpu"])
    quantiles = {
        f"p{percent}_ms": round(float(np.percentile(figures["latency"], percent)) * 1000, 3) for percent in (50, 99)
    }
    return {
        "benchmark": "serving",
        "server": contestant.name,
        "version": contestant.version,
        "requests_per_second_per_core": round(requests / cpu),
        "requests_per_second": round(requests / sum(figures["elapsed"])),
        "cores_used": round(cpu / sum(figures["elapsed"]), 2),
        f"at_{RATE:g}_per_second": quantiles,
        "requests": requests + len(figures["latency"]),
        "failed": sum(figures["failed"]),
    }


async def measure(rounds: int, only: list[str]) -> list[dict[str, Any]]:
    """All servers in turns."""
    chosen = [contestant for contestant in contestants() if not only or contestant.name in only]
    figures: dict[str, dict[str, list[Any]]] = {
        contestant.name: {key: [] for key in ("requests", "cpu", "elapsed", "latency", "failed")}
        for contestant in chosen
    }
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        row, expected = export(model)
        for _ in range(rounds):
            for contestant in chosen:
                sys.stderr.write(f"{contestant.name}…\n")
                found = figures[contestant.name]
                try:
                    await turn(contestant, model, row, expected, found)
                    # A run that is broken off has shown this much.
                    sys.stderr.write(f"{json.dumps(summary(contestant, found))}\n")
                except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
                    # The others are still worth comparing.
                    sys.stderr.write(f"{contestant.name}: {error}\n")
    lines = [
        summary(contestant, figures[contestant.name])
        if figures[contestant.name]["latency"]
        else {"benchmark": "serving", "server": contestant.name, "version": contestant.version, "failed": "all"}
        for contestant in chosen
    ]
    by_name = {line["server"]: line for line in lines}
    others = [line for name, line in by_name.items() if name not in (*OURS, LIMIT) and "requests" in line]
    if others and LIMIT in by_name and all(name in by_name for name in OURS):
        lines.append(compare(by_name, others))
    return lines


def compare(by_name: dict[str, dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """What the project asks of itself: five times the best of the others, lower p99, within 1.5 of the limit."""
    per_core, latency = "requests_per_second_per_core", f"at_{RATE:g}_per_second"
    best = max(others, key=lambda line: float(line[per_core]))
    quickest = min(others, key=lambda line: float(line[latency]["p99_ms"]))
    return {
        "benchmark": "serving_compared",
        "best_other": best["server"],
        "lowest_p99_other": quickest["server"],
        **{
            name: {
                "times_best_other": round(by_name[name][per_core] / best[per_core], 2),
                "p99_of_lowest_other": round(by_name[name][latency]["p99_ms"] / quickest[latency]["p99_ms"], 2),
                "limit_is_times": round(by_name[LIMIT][per_core] / by_name[name][per_core], 2),
            }
            for name in OURS
        },
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
    }


def main() -> None:
    """Print one JSON line each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="names of servers")
    options = parser.parse_args()
    for line in uvloop.run(measure(options.rounds, options.only)):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
