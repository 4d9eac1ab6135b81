"""MLflow through its REST API: runs with parameters, metrics and artifacts, and versions of registered models.

MLflow's own client, also the skinny one, brings a web framework and a cloud's SDK with it; what is needed here are a
dozen requests. They are those of https://mlflow.org/docs/latest/rest-api.html.
"""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

TIMEOUT = 30.0
"""Seconds for one request."""
ATTEMPTS = 4
"""Tries of a request that the server does not answer, with pauses of 1, 2 and 4 s between them."""
_BATCH = 100
"""Parameters or tags that one request may carry; of metrics 1000."""
_ALREADY = "RESOURCE_ALREADY_EXISTS"


class RegistryError(Exception):
    """The registry refused, or did not answer; the text says what was asked and what would help.

    Attributes:
        code: MLflow's error code; empty where it gave none.
        retryable: It did not answer, or not now.
    """

    def __init__(self, what: str, found: str, code: str = "", retryable: bool = False) -> None:
        self.code = code
        self.retryable = retryable
        super().__init__(f"registry: {what}: {found}")


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric while training went on; `at` in seconds since the epoch."""

    name: str
    value: float
    step: int
    at: float


class Client:
    """An MLflow server.

    Args:
        tracking_uri: Its address.
        variables: The environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        tracking_uri: str,
        variables: Mapping[str, str] = os.environ,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._uri = tracking_uri.rstrip("/")
        self._sleep = sleep
        self._headers = {"Accept": "application/json"}
        token, user = variables.get("MLFLOW_TRACKING_TOKEN"), variables.get("MLFLOW_TRACKING_USERNAME")
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        elif user:
            pair = f"{user}:{variables.get('MLFLOW_TRACKING_PASSWORD', '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"

    def experiment(self, name: str) -> str:
        """Id of the experiment, which is made where it is not there.

        Raises:
            RegistryError: the server refused or did not answer.
        """
        try:
            return str(self._call("POST", "experiments/create", {"name": name})["experiment_id"])
        except RegistryError as error:
            if error.code != _ALREADY:
                raise
        found = self._call("GET", f"experiments/get-by-name?experiment_name={quote(name, safe='')}")
        return str(found["experiment"]["experiment_id"])

    def start(self, experiment: str, name: str, tags: Mapping[str, str], started: float) -> tuple[str, str]:
        """Begin a run.

        Returns:
            Its id, and the URI of its artifacts.
        """
        body = {
            "experiment_id": experiment,
            "run_name": name,
            "start_time": int(started * 1000),
            "tags": [{"key": key, "value": value[:5000]} for key, value in tags.items()],
        }
        info = self._call("POST", "runs/create", body)["run"]["info"]
        return str(info["run_id"]), str(info["artifact_uri"])

    def log(self, run_id: str, parameters: Mapping[str, str], points: Sequence[Point]) -> None:
        """Parameters and metrics of a run."""
        pairs = [{"key": key[:250], "value": value[:6000]} for key, value in parameters.items()]
        numbers = [
            {"key": point.name, "value": point.value, "step": point.step, "timestamp": int(point.at * 1000)}
            for point in points
        ]
        for part in _parts(pairs, _BATCH):
            self._call("POST", "runs/log-batch", {"run_id": run_id, "params": part})
        for part in _parts(numbers, 10 * _BATCH):
            self._call("POST", "runs/log-batch", {"run_id": run_id, "metrics": part})

    def upload(self, artifact_uri: str, path: str, content: bytes) -> None:
        """One artifact, through the server (`mlflow server --serve-artifacts`, the default)."""
        root = artifact_uri.removeprefix("mlflow-artifacts:").lstrip("/")
        self._send("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{quote(f'{root}/{path}')}", content)

    def end(self, run_id: str) -> None:
        """The run is finished."""
        body = {"run_id": run_id, "status": "FINISHED", "end_time": int(time.time() * 1000)}
        self._call("POST", "runs/update", body)

    def register(self, model: str, source: str, run_id: str, alias: str | None) -> str:
        """A new version of a model.

        Returns:
            Its version.
        """
        try:
            self._call("POST", "registered-models/create", {"name": model})
        except RegistryError as error:
            if error.code != _ALREADY:
                raise
        body = {"name": model, "source": source, "run_id": run_id}
        number = str(self._call("POST", "model-versions/create", body)["model_version"]["version"])
        if alias is not None:
            self._call("POST", "registered-models/alias", {"name": model, "alias": alias, "version": number})
        return number

    def version_of(self, model: str, alias: str) -> str:
        """The version that an alias names.

        Raises:
            RegistryError: there is none, or the server did not answer.
        """
        query = f"name={quote(model, safe='')}&alias={quote(alias, safe='')}"
        return str(self._call("GET", f"registered-models/alias?{query}")["model_version"]["version"])

    def location(self, model: str, number: str) -> str:
        """URI of the artifacts of a version: `mlflow-artifacts:/…` where the server hands them out, else a store's."""
        query = f"name={quote(model, safe='')}&version={quote(number, safe='')}"
        return str(self._call("GET", f"model-versions/get-download-uri?{query}")["artifact_uri"])

    def download(self, artifact_uri: str, folder: Path) -> None:
        """Copy the artifacts below a `mlflow-artifacts:` URI into a local folder.

        Raises:
            RegistryError: the server refused or did not answer, or named a file outside of the folder.
        """
        root = artifact_uri.removeprefix("mlflow-artifacts:").lstrip("/")
        waiting = [""]
        while waiting:
            path = waiting.pop()
            listed = quote(f"{root}/{path}".rstrip("/"), safe="")
            found = json.loads(self._send("GET", f"/api/2.0/mlflow-artifacts/artifacts?path={listed}", None))
            for item in found.get("files") or ():
                inner = f"{path}/{item['path']}".lstrip("/")
                if ".." in PurePosixPath(inner).parts:
                    raise RegistryError(f"artifacts of {artifact_uri}", f"the name {inner!r} leads outside of them")
                if item.get("is_dir"):
                    waiting.append(inner)
                    continue
                content = self._send("GET", f"/api/2.0/mlflow-artifacts/artifacts/{quote(f'{root}/{inner}')}", None)
                target = folder / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)

    def page(self, model: str, number: str) -> str:
        """Where to look at a version of a model."""
        return f"{self._uri}/#/models/{quote(model, safe='')}/versions/{number}"

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        answer: dict[str, Any] = json.loads(self._send(method, f"/api/2.0/mlflow/{path}", data, "application/json"))
        return answer

    def _send(self, method: str, path: str, data: bytes | None, kind: str = "application/octet-stream") -> bytes:
        what = f"{method} {self._uri}{path.partition('?')[0]}"
        headers = self._headers | {"Content-Type": kind}
        request = urllib.request.Request(self._uri + path, data, headers, method=method)
        for attempt in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                    return bytes(response.read())
            except urllib.error.HTTPError as error:
                code, said = _problem(error)
                if error.code not in (429, 502, 503, 504) or attempt == ATTEMPTS - 1:
                    hint = "; check registry.secretRef" if error.code in (401, 403) else ""
                    retryable = error.code in (429, 502, 503, 504)
                    raise RegistryError(what, f"HTTP {error.code} {said}{hint}", code, retryable) from error
            except OSError as error:
                if attempt == ATTEMPTS - 1:
                    reason = getattr(error, "reason", error)
                    found = f"no answer ({reason}); check registry.trackingUri and that the server runs"
                    raise RegistryError(what, found, retryable=True) from error
            self._sleep(2.0**attempt)
        raise AssertionError("unreachable")


def _problem(error: urllib.error.HTTPError) -> tuple[str, str]:
    """MLflow's error code and message, or the beginning of whatever came."""
    text = error.read()[:2000]
    try:
        answer = json.loads(text)
        return str(answer.get("error_code", "")), str(answer.get("message", ""))[:300]
    except (ValueError, AttributeError):
        return "", " ".join(text.decode(errors="replace").split())[:200]


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
