"""`python -m headrace.training.parameter_server`: one server of a run, told by its environment.

    HEADRACE_SERVERS        host:port of each server, separated by commas
    HEADRACE_SERVER_INDEX   which of them this is, from 0; it listens on that port
    HEADRACE_WORKERS        workers of the run
    HEADRACE_TOPOLOGY       the JSON of spec.topology

and, as for workers, HEADRACE_RUN_ID, HEADRACE_STORAGE_URI, HEADRACE_CHECKPOINT_INTERVAL and HEADRACE_CHECKPOINT_KEEP.
HEADRACE_VERSION_LOG may name a file for a line of JSON whenever weights are handed out.

It serves until SIGTERM, saves, and ends with 143; 78 where the configuration or the storage cannot work.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from headrace.storage import StorageError
from headrace.training.errors import EXIT_CONFIGURATION, EXIT_FAILED, EXIT_INTERRUPTED, ConfigurationError
from headrace.training.parameter_server.environment import server_settings
from headrace.training.parameter_server.server import Server, version_log


def main() -> int:
    """Serve, and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    try:
        settings = server_settings(os.environ)
        path = os.environ.get("HEADRACE_VERSION_LOG")
        server = Server(settings, version_log(path) if path else None)
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        logging.getLogger(__name__).info(
            "server %d of %d for %d workers, %s, %s, port %d",
            settings.index,
            settings.servers,
            settings.workers,
            settings.parameter_server.consistency,
            settings.parameter_server.optimizer,
            server.port,
        )
        server.run()
    except ConfigurationError as error:
        return _last_line(str(error), EXIT_CONFIGURATION)
    except StorageError as error:
        return _last_line(str(error), EXIT_FAILED if error.retryable else EXIT_CONFIGURATION)
    return EXIT_INTERRUPTED


def _last_line(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the pod's termination message
    return code


if __name__ == "__main__":
    result = main()
    logging.shutdown()
    # Threads that wait for workers hold nothing back.
    os._exit(result)
