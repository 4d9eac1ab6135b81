"""Each line of a log is JSON and says which resource and which reconcile it is about."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from controllers.runtime.logs import configure_logging, log_fields


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lines_carry_the_resource_inside_and_not_outside(stream: io.StringIO) -> None:
    logger = logging.getLogger("test")
    with log_fields(kind="TrainingJob", namespace="ns", name="digits", reconcileID="1"), log_fields(attempt="2"):
        logger.info("working on %d", 3)
    logger.info("done")
    inside, outside = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (
        inside.items()
        >= {
            "level": "info",
            "message": "working on 3",
            "kind": "TrainingJob",
            "namespace": "ns",
            "name": "digits",
            "reconcileID": "1",
            "attempt": "2",
        }.items()
    )
    assert "kind" not in outside


def test_a_traceback_is_one_field_of_one_line(stream: io.StringIO) -> None:
    try:
        raise KeyError("paint")
    except KeyError:
        logging.getLogger("test").exception("unexpected error")
    (line,) = stream.getvalue().splitlines()
    assert "KeyError: 'paint'" in json.loads(line)["exception"]
