"""``python -m headrace.serving predictor|router``; see docs/serving.md.

Exit codes: 0 after a drain, 78 (EX_CONFIG) when the configuration or the model cannot work, 1 otherwise. The last line
on standard error says why.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, get_args

import uvloop
from pydantic import ValidationError

from headrace.api.chain import HTTP_PORT, Chain
from headrace.api.inferenceservice import Batching, ModelFormat, ModelSource
from headrace.reporting import pod_reporter
from headrace.serving import logs
from headrace.serving.drain import Leaving, Times
from headrace.serving.models.base import ModelError
from headrace.serving.predictor import PredictorSettings, run_predictor
from headrace.serving.router import CREDENTIALS, RouterSettings, run_router
from headrace.serving.tensors import RequestError
from headrace.storage import StorageError


class ConfigurationError(Exception):
    """The command line or the chain cannot work."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    times = Times()
    parser = argparse.ArgumentParser(prog="python -m headrace.serving", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    predictor = commands.add_parser("predictor", help="serve one model")
    predictor.add_argument("--name", required=True, help="name of the model in the protocol")
    predictor.add_argument("--model-format", choices=get_args(ModelFormat), default="ONNX")
    predictor.add_argument("--storage-uri", help="the model file, or a folder with one such as model.onnx")
    predictor.add_argument("--model", help="format and source as the JSON of predictor.model, instead of these two")
    predictor.add_argument("--code", type=Path, help="Python file of a model of format Python")
    predictor.add_argument("--batch-size", type=int, help="rows that run together; by default each request by itself")
    predictor.add_argument("--batch-latency", default="5ms", help="time that a request waits for others")
    predictor.add_argument("--queue", type=int, default=64, help="requests that may wait for a thread")
    router = commands.add_parser("router", help="serve a chain of steps")
    router.add_argument("--chain", type=Path, required=True, help="file with the chain as JSON")
    router.add_argument("--traffic", type=Path, help="file with where requests go beside the chain; may change")
    router.add_argument("--credentials", type=Path, default=CREDENTIALS, help="folder of mounted Secrets")
    for command in (predictor, router):
        command.add_argument("--host", default=None, help="address to listen at; by default all")
        command.add_argument("--port", type=int, default=HTTP_PORT)
        command.add_argument("--grpc-port", type=int, default=None, help="port of gRPC; by default there is none")
        command.add_argument(
            "--drain-seconds", type=float, default=times.drain, help="how long it still listens after SIGTERM"
        )
        command.add_argument(
            "--grace-seconds", type=float, default=times.grace, help="time for requests in flight after that"
        )
        command.add_argument("--log-level", default=os.environ.get("HEADRACE_LOG_LEVEL", "info"))
    return parser


def read_chain(file: Path) -> Chain:
    """The chain in a file.

    Raises:
        ConfigurationError: the file is missing or is no chain.
    """
    try:
        return Chain.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}; mount the chain's ConfigMap there") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{file}: {where}: {first['msg']} ({error.error_count()} errors)") from error


def read_model(options: argparse.Namespace) -> ModelSource:
    """What the command line says of the model.

    Raises:
        ConfigurationError: it says nothing that could be a model.
    """
    try:
        if options.model:
            return ModelSource.model_validate_json(options.model)
        code = {"code": {"configMap": {"name": "code", "key": options.code.name}}} if options.code else {}
        source = {"modelFormat": options.model_format, "storageUri": options.storage_uri, **code}
        return ModelSource.model_validate({name: value for name, value in source.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"the model: {where + ': ' if where else ''}{first['msg']}") from error


async def _predictor(options: argparse.Namespace, times: Times) -> None:
    leaving = Leaving()
    leaving.on_signals()
    settings = PredictorSettings(
        options.name,
        read_model(options),
        options.code,
        options.port,
        options.host,
        options.grpc_port,
        options.queue,
        times,
        Batching(max_size=options.batch_size, max_latency=options.batch_latency) if options.batch_size else None,
    )
    await run_predictor(settings, leaving)


async def _router(options: argparse.Namespace, times: Times) -> None:
    leaving = Leaving()
    leaving.on_signals()
    reporter = pod_reporter()
    settings = RouterSettings(
        options.port, options.host, options.grpc_port, options.credentials, times, traffic=options.traffic
    )
    try:
        await run_router(
            read_chain(options.chain), settings, leaving, lambda report: reporter.report(report.manifest())
        )
    finally:
        await reporter.aclose(timeout=3.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command to its end; returns the exit code."""
    options = arguments().parse_args(argv)
    logs.configure(options.log_level)
    times = Times(options.drain_seconds, options.grace_seconds)
    work: Coroutine[Any, Any, None] = (_predictor if options.command == "predictor" else _router)(options, times)
    try:
        uvloop.run(work)
    except (ModelError, ConfigurationError, RequestError) as error:
        return logs.last_line(78, str(error))
    except StorageError as error:
        # A key that is refused is as wrong as a model that is not there: whoever mends it is told the same way.
        return logs.last_line(1 if error.retryable else 78, str(error))
    except OSError as error:
        return logs.last_line(1, str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
