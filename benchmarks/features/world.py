"""What the benchmark of feature reads runs: a table, one store, our feature server and Feast's, all on loopback."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cluster import cache, host, images
from headrace.api.featureset import FeatureSetSpec
from headrace.api.featureset.served import ServedFeatureSet
from headrace.features.online import VARIABLE, Keys, connect
from headrace.features.refresh import Refresher

FEAST = "feast[redis]==0.67.0"
ENTITIES = 1000
FEATURES = 50
NAMES = [f"f{index}" for index in range(FEATURES)]

_REPOSITORY = textwrap.dedent(
    """\
    from datetime import timedelta
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    source = FileSource(path="table.parquet", timestamp_field="event_timestamp")
    view = FeatureView(
        name="drivers", entities=[driver], ttl=timedelta(days=365), source=source, online=True,
        schema=[Field(name=f"f{index}", dtype=Float64) for index in range(%d)],
    )
    service = FeatureService(name="all", features=[view])
    """
)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_table(folder: Path) -> Path:
    """A row of 50 numbers for each of 1000 entities."""
    rng = np.random.default_rng(0)
    now = datetime.now(UTC) - timedelta(hours=1)
    columns = {
        "driver_id": np.arange(ENTITIES),
        "event_timestamp": pa.array([now] * ENTITIES, pa.timestamp("us", "UTC")),
        **{name: rng.normal(size=ENTITIES) for name in NAMES},
    }
    parquet.write_table(pa.table(columns), folder / "table.parquet")
    return folder / "table.parquet"


def spec(table: Path, cached: int) -> FeatureSetSpec:
    """The same features as a FeatureSet, with so many entities in the server's cache."""
    return FeatureSetSpec.model_validate(
        {
            "entities": [{"name": "driver_id"}],
            "source": {"uri": f"file://{table}", "timestampColumn": "event_timestamp"},
            "features": [{"name": name, "type": "Float64"} for name in NAMES],
            "ttl": "8760h",
            "refresh": {"onUpdate": False},
            "server": {"cache": {"maxEntities": cached}},
        }
    )


@contextmanager
def store() -> Iterator[int]:
    """Valkey from the platform's image; its port."""
    port, name = free_port(), f"headrace-bench-{secrets.token_hex(4)}"
    arguments = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--protected-mode",
        "no",
    ]
    host.docker("run", "--detach", "--rm", "--network=host", "--name", name, images.tag("valkey"), *arguments)
    try:
        wait("the store", lambda: connect(f"redis://127.0.0.1:{port}").ping())
        yield port
    finally:
        host.docker("kill", name)


@contextmanager
def headrace(folder: Path, table: Path, store_port: int, cached: int) -> Iterator[int]:
    """Our feature server over rows that a refresh loaded; its port."""
    uri, given = f"redis://127.0.0.1:{store_port}/0", spec(table, cached)
    client = connect(uri)
    Refresher(given, keys(given), client).run()
    client.close()
    config = folder / f"featureset-{cached}.json"
    served = ServedFeatureSet(namespace="bench", name="drivers", spec=given)
    config.write_text(served.model_dump_json(by_alias=True, exclude_none=True))
    port = free_port()
    command = [sys.executable, "-m", "headrace.features", "serve", "--config", str(config), "--port", str(port)]
    with process([*command, "--drain-seconds", "0", "--log-level", "warning"], folder, {VARIABLE: uri}):
        wait("our server", lambda: get(port, "/readyz") == 200)
        yield port


def keys(given: FeatureSetSpec) -> Keys:
    """Where its rows lie."""
    return Keys("bench", "drivers", given.transform().hash)


@contextmanager
def feast(folder: Path, store_port: int) -> Iterator[int]:
    """Feast's feature server over the same table and store; its port."""
    python = environment() / "bin" / "feast"
    (folder / "feature_store.yaml").write_text(
        "project: bench\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
        "offline_store: {type: file}\n"
        f"online_store: {{type: redis, connection_string: '127.0.0.1:{store_port},db=1'}}\n"
    )
    (folder / "repository.py").write_text(_REPOSITORY % FEATURES)
    quiet = {"FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore"}
    now = (datetime.now(UTC) + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%S")
    for arguments in (["apply"], ["materialize-incremental", now]):
        done = subprocess.run(
            [python, *arguments], cwd=folder, env={**os.environ, **quiet}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"feast {arguments[0]} failed: {done.stderr[-2000:]}")
    port = free_port()
    command = [str(python), "serve", "--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--workers", "1"]
    with process(command, folder, quiet):
        wait("Feast's server", lambda: get(port, "/health") == 200, 120)
        yield port


def environment() -> Path:
    """Feast's own environment, made once."""
    folder = cache.root() / "benchmarks" / f"feast-{FEAST.partition('==')[2]}"
    if not (folder / "done").exists():
        uv = os.environ.get("UV", "uv")
        print(f"Installing {FEAST} into {folder}…", file=sys.stderr)
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", FEAST], check=True)
        (folder / "done").touch()
    return folder


@contextmanager
def process(command: list[str], folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """A program that runs until the block ends; its words are in a file of the folder."""
    with (folder / f"{Path(command[0]).name}.log").open("ab") as log, ExitStack() as stack:
        started = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(images.ROOT), **variables}, stdout=log, stderr=log
        )
        stack.callback(started.wait)
        stack.callback(started.kill)
        yield


def get(port: int, path: str) -> int:
    """Status of a GET; 0 where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def wait(what: str, ready: Callable[[], object], seconds: float = 60) -> None:
    """Wait until it is there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except OSError:
            pass
        except Exception as error:
            if "onnect" not in str(error):
                raise
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} does not answer after {seconds} s")
        time.sleep(0.05)


def bodies(count: int, rows: int, feast_s: bool) -> list[bytes]:
    """Questions for 50 features of so many entities each."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count):
        ids = rng.integers(0, ENTITIES, rows).tolist()
        question = {"entities": {"driver_id": ids}}
        found.append(json.dumps({"feature_service": "all", **question} if feast_s else question).encode())
    return found
