"""`python -m headrace.training.agent -- COMMAND…`: the entry of a worker's container."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from headrace.reporting import pod_reporter
from headrace.training.agent.member import Agent
from headrace.training.agent.settings import Settings
from headrace.training.errors import EXIT_CONFIGURATION, ConfigurationError


def main(arguments: Sequence[str]) -> int:
    """Run the agent of one worker; the pod's exit code."""
    command = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    try:
        if not command:
            raise ConfigurationError("arguments", "no command", "python -m headrace.training.agent -- python train.py")
        settings = Settings.read(os.environ)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the termination message
        return EXIT_CONFIGURATION
    return asyncio.run(_run(settings, command))


async def _run(settings: Settings, command: Sequence[str]) -> int:
    host = "127.0.0.1" if settings.max_workers == 1 else None
    return await Agent(settings, command, os.environ, pod_reporter, host).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
