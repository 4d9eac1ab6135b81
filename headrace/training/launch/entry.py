"""The end of a script that `headrace.training.run` made: call the function in a session, and hand its result back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from headrace.training.errors import ConfigurationError
from headrace.training.launch.source import takes_run

RESULT, PROGRESS = "result", "progress"
MOST = 1 << 20
"""Characters of a result."""


def main(fn: Callable[..., Any], arguments: str, mark: str) -> None:
    """Call the function.

    Args:
        fn: Takes the session first where its first parameter is called `run`.
        arguments: Its keyword arguments as JSON.
        mark: Precedes a line with a result or with progress.

    Raises:
        ConfigurationError: what it returns is not JSON, or too much.
    """
    from headrace.training.running import session

    def progress(line: str) -> None:
        print(f"{mark} {PROGRESS} {line}", flush=True)  # noqa: T201 - how it gets to the caller

    with session(sink=progress) as run:
        given = json.loads(arguments)
        value = fn(run, **given) if takes_run(fn) else fn(**given)
        if run.rank != 0:
            return
        try:
            text = json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                fn.__name__,
                f"its result cannot be returned: {error}",
                "return JSON; publish models with run.publish",
            ) from error
        if len(text) > MOST:
            raise ConfigurationError(
                fn.__name__, f"its result has {len(text)} characters", "return less; publish models with run.publish"
            )
        print(f"{mark} {RESULT} {text}", flush=True)  # noqa: T201 - how it gets to the caller
