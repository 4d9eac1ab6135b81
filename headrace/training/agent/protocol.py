"""Messages between agents: one JSON object per line, with a bounded length."""

from __future__ import annotations

import asyncio
import json
from typing import Any

Message = dict[str, Any]

LIMIT = 1 << 20
"""Bytes of a line: a start names every worker's address."""


class ProtocolError(Exception):
    """The other side sent something that is no message."""


def encode(message: Message) -> bytes:
    """The message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end of the connection.

    Raises:
        ProtocolError: it is too long, or no JSON object with a type.
        OSError: the connection broke.
    """
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError as error:
        raise ProtocolError(f"a line of more than {LIMIT} bytes") from error
    try:
        message = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"no JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("no object with a type")
    return message
