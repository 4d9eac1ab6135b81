"""``python -m headrace.features serve|refresh``; see docs/features.md.

Exit codes: 0 after a drain or a refresh, 78 (EX_CONFIG) when the configuration or the source cannot work, 1 otherwise.
The last line on standard error says why.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import redis
import uvloop

from headrace.api.featureset.served import HTTP_PORT
from headrace.features.columns import ColumnError
from headrace.features.config import read
from headrace.features.online import VARIABLE, Keys, OnlineStoreError, connect, parse_address, unusable
from headrace.features.refresh import Overtaken, Refresher
from headrace.features.server import ServerSettings, run_server
from headrace.reporting import pod_reporter
from headrace.serving import logs
from headrace.serving.drain import Leaving, Times
from headrace.storage import StorageError
from headrace.training.errors import ConfigurationError


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    times = Times()
    parser = argparse.ArgumentParser(prog="python -m headrace.features", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer over HTTP")
    serve.add_argument("--host", default=None, help="address to listen at; by default all")
    serve.add_argument("--port", type=int, default=HTTP_PORT)
    serve.add_argument("--drain-seconds", type=float, default=times.drain, help="how long it listens after SIGTERM")
    serve.add_argument(
        "--grace-seconds", type=float, default=times.grace, help="time for requests in flight after that"
    )
    refresh = commands.add_parser("refresh", help="load the online store from the source")
    refresh.add_argument("--keep", default="", help="hashes of transforms that are still served, separated by commas")
    for command in (serve, refresh):
        command.add_argument("--config", type=Path, required=True, help="file with the FeatureSet as JSON")
        command.add_argument("--log-level", default=os.environ.get("HEADRACE_LOG_LEVEL", "info"))
    return parser


def _uri() -> str:
    uri = os.environ.get(VARIABLE, "")
    if not uri:
        raise ConfigurationError(VARIABLE, "is not set", "name a Secret with that key in onlineStore.secretRef")
    return uri


async def _serve(options: argparse.Namespace) -> None:
    leaving = Leaving()
    leaving.on_signals()
    reporter = pod_reporter()
    settings = ServerSettings(_uri(), options.port, options.host, Times(options.drain_seconds, options.grace_seconds))
    try:
        await run_server(read(options.config), settings, leaving, lambda report: reporter.report(report.manifest()))
    finally:
        await reporter.aclose(timeout=3.0)


def _refresh(options: argparse.Namespace) -> None:
    served, uri = read(options.config), _uri()
    reporter = pod_reporter()
    client = connect(uri)
    keys = Keys(served.namespace, served.name, served.spec.transform().hash)
    refresher = Refresher(
        served.spec,
        keys,
        client,
        lambda report: reporter.report(report.manifest()),
        rows_per_second=served.spec.refresh.max_rows_per_second,
    )
    try:
        refresher.run([item for item in options.keep.split(",") if item])
    except (redis.RedisError, redis.exceptions.RedisClusterException) as error:
        raise unusable(parse_address(uri), error) from error
    finally:
        client.close()
        reporter.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command to its end; returns the exit code."""
    options = arguments().parse_args(argv)
    logs.configure(options.log_level)
    try:
        if options.command == "serve":
            uvloop.run(_serve(options))
        else:
            _refresh(options)
    except (ConfigurationError, ColumnError) as error:
        return logs.last_line(78, str(error))
    except StorageError as error:
        return logs.last_line(1 if error.retryable else 78, str(error))
    except (OnlineStoreError, Overtaken, OSError) as error:
        return logs.last_line(1, str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
