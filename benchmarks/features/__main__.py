"""Reads of 50 features: `python -m benchmarks.features [rounds]`. Prints one JSON line.

One Valkey on loopback holds the same table for both. In turns, so that a busy machine hurts all alike:

- `headrace`: POST /v1/features of one server process, every request read from the store (its cache is off);
- `cached`: the same with the cache on;
- `feast`: POST /get-online-features of Feast's Python server, one worker;
- `client`: our client library, in the process that asks: rows read, statuses and values decoded;
- `bare`: redis-py, a pipeline with an HGET for each entity's row, bytes as they come: the least that such a read costs.

For one entity and for 100 at a time, one request after the other: median and 99th percentile of a request in ms, and
requests per second of 8 connections for the servers. Store, servers and clients share the machine's cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.features import world
from headrace.features.online import State, connect
from headrace.features.reading import FeatureClient

ROWS = (1, 100)
REQUESTS = {1: 300, 100: 60}
"""Requests of one way in one round."""
CONNECTIONS = 8
PATHS = {"headrace": "/v1/features", "cached": "/v1/features", "feast": "/get-online-features"}


class Http:
    """One connection to a server."""

    def __init__(self, port: int, path: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._path = path

    def __call__(self, body: bytes) -> bytes:
        self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{self._path}: {response.status} {answer[:300]!r}")
        return answer


def timed(ask: Callable[[Any], Any], questions: list[Any]) -> list[float]:
    """Seconds of each question."""
    found = []
    for question in questions:
        started = time.perf_counter()
        ask(question)
        found.append(time.perf_counter() - started)
    return found


def throughput(port: int, path: str, questions: list[bytes]) -> float:
    """Requests per second of several connections at once."""

    def work(part: list[bytes]) -> None:
        ask = Http(port, path)
        for question in part:
            ask(question)

    threads = [threading.Thread(target=work, args=(questions[n::CONNECTIONS],)) for n in range(CONNECTIONS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(questions) / (time.perf_counter() - started)


def check(headrace: bytes, feast: bytes) -> None:
    """Both answered the same."""
    ours, theirs = json.loads(headrace), json.loads(feast)
    names = theirs["metadata"]["feature_names"]
    for name in world.NAMES:
        values = theirs["results"][names.index(name)]["values"]
        mine = [row[ours["features"].index(name)] for row in ours["rows"]]
        if not np.allclose(np.array(values, float), np.array(mine, float), rtol=0, atol=0):
            raise RuntimeError(f"{name}: {values[:3]} and {mine[:3]}")


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """All ways, in turns."""
    table = world.write_table(folder)
    with ExitStack() as stack:
        store = stack.enter_context(world.store())
        ports = {
            "headrace": stack.enter_context(world.headrace(folder, table, store, 0)),
            "cached": stack.enter_context(world.headrace(folder, table, store, world.ENTITIES)),
            "feast": stack.enter_context(world.feast(folder, store)),
        }
        uri, given = f"redis://127.0.0.1:{store}/0", world.spec(table, 0)
        keys = world.keys(given)
        client, bare = FeatureClient(given, "bench", "drivers", uri), connect(uri)
        state = State.read(bare.get(keys.of("state")))
        assert state is not None
        rows_key = keys.rows(state.version)

        def read(names: list[str]) -> Any:
            with bare.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.hget(rows_key, name)
                return pipeline.execute()

        result: dict[str, Any] = {}
        for rows in ROWS:
            count = REQUESTS[rows]
            questions: dict[str, list[Any]] = {way: world.bodies(count, rows, way == "feast") for way in PATHS}
            ids = [json.loads(body)["entities"]["driver_id"] for body in questions["headrace"]]
            questions["client"] = [{"driver_id": item} for item in ids]
            questions["bare"] = [[str(number) for number in item] for item in ids]
            ask: dict[str, Callable[[Any], Any]] = {way: Http(ports[way], path) for way, path in PATHS.items()}
            ask |= {"client": client.get, "bare": read}
            check(ask["headrace"](questions["headrace"][0]), ask["feast"](questions["feast"][0]))
            for way in ask:
                timed(ask[way], questions[way][: count // 5])
            seconds: dict[str, list[float]] = {way: [] for way in ask}
            rates: dict[str, list[float]] = {way: [] for way in PATHS}
            for _ in range(rounds):
                for way in ask:
                    seconds[way] += timed(ask[way], questions[way])
                for way, path in PATHS.items():
                    rates[way].append(throughput(ports[way], path, questions[way]))
            found = {
                way: {
                    "p50_ms": round(1000 * statistics.median(values), 3),
                    "p99_ms": round(1000 * float(np.quantile(values, 0.99)), 3),
                }
                for way, values in seconds.items()
            }
            for way, values in rates.items():
                found[way]["requests_per_second"] = round(statistics.median(values), 1)
            result[f"{rows}_entities"] = found | {
                "feast_over_headrace_p50": ratio(found["feast"]["p50_ms"], found["headrace"]["p50_ms"]),
                "headrace_over_feast_rate": ratio(
                    found["headrace"]["requests_per_second"], found["feast"]["requests_per_second"]
                ),
                "client_over_bare_p50": ratio(found["client"]["p50_ms"], found["bare"]["p50_ms"]),
            }
        return result


def ratio(above: float, below: float) -> float:
    """Two digits are enough on a shared machine."""
    return round(above / below, 2)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="headrace-bench-features-") as folder:
        found = measure(Path(folder), rounds)
    about = {"features": world.FEATURES, "rounds": rounds, "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "features", "feast": world.FEAST.partition("==")[2], **about, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
