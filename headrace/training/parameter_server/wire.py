"""Frames on a TCP connection: a small JSON header and raw bytes, nothing that would be executed.

    "HPS1" | kind, 1 byte | 3 bytes 0 | header's length, 4 bytes | payload's length, 8 bytes | header | payload

Integers are big-endian; what the payload means is said by the header. A reader states the greatest payload that it
expects, so that no peer can make it allocate more.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_START = struct.Struct("!4sB3xIQ")
_MAGIC = b"HPS1"
MAX_HEADER = 4 << 20
"""Bytes of a header; the longest is the layout of a model with some hundred thousand tensors."""
KEEPALIVE = 5
"""Seconds of silence after which a peer's machine is probed, and between two probes."""
PROBES = 3
"""Unanswered probes after which the connection is given up."""


class Kind(IntEnum):
    """What a frame asks for or answers."""

    HELLO = 1
    """A worker joins, or comes back."""
    WELCOME = 2
    """How the shard stands, and where the worker goes on."""
    INITIALIZE = 3
    """First weights of the shard."""
    EXCHANGE = 4
    """A gradient to apply, weights to send, or both."""
    WEIGHTS = 5
    DONE = 6
    """Asked for no weights, or had nothing to give."""
    HEARTBEAT = 7
    STATUS = 8
    """How the shard and its workers stand."""
    FINISH = 9
    """The worker has taken all its steps."""
    REFUSED = 10
    """Trying again is of no use; the header says why."""


class WireError(ConnectionError):
    """The peer does not speak this protocol, or broke off in the middle of a frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. The payload may be overwritten by the next message that the same `Connection` receives."""

    kind: Kind
    header: dict[str, Any]
    payload: NDArray[np.uint8]

    @property
    def size(self) -> int:
        """Bytes on the wire, but for the header, whose length the reader does not keep."""
        return len(self.payload)


class Connection:
    """One peer. Not for use by two threads at a time.

    Attributes:
        sent: Bytes written so far.
        received: Bytes read so far.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.sent = 0
        self.received = 0
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Of Linux; elsewhere (a notebook on another system) the system's own times hold.
        for option, value in (
            ("TCP_KEEPIDLE", KEEPALIVE),
            ("TCP_KEEPINTVL", KEEPALIVE),
            ("TCP_KEEPCNT", PROBES),
            ("TCP_USER_TIMEOUT", KEEPALIVE * (PROBES + 1) * 1000),
        ):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, kind: Kind, header: Mapping[str, Any], payload: Sequence[Any] = ()) -> None:
        """Write one frame.

        Args:
            kind: What it is.
            header: JSON.
            payload: Buffers, written one after another without a copy.

        Raises:
            OSError: the connection is broken.
        """
        text = json.dumps(header, separators=(",", ":")).encode()
        buffers = [memoryview(part).cast("B") for part in payload if len(part)]
        start = _START.pack(_MAGIC, kind, len(text), sum(len(part) for part in buffers))
        rest = [memoryview(start + text), *buffers]
        while rest:
            done = self._socket.sendmsg(rest[:64])
            self.sent += done
            while rest and done >= len(rest[0]):
                done -= len(rest[0])
                rest.pop(0)
            if rest:
                rest[0] = rest[0][done:]

    def receive(self, limit: int) -> Frame | None:
        """The next frame; None where the peer has closed the connection.

        Args:
            limit: Greatest payload in bytes.

        Raises:
            WireError: what comes is no frame, or too large a one.
            OSError: the connection is broken.
        """
        start = bytearray(_START.size)
        if not self._fill(memoryview(start), may_end=True):
            return None
        magic, kind, header_length, length = _START.unpack(start)
        if magic != _MAGIC or kind not in Kind._value2member_map_:
            raise WireError(f"a peer sent {bytes(start[:5])!r}, which starts no frame of this protocol")
        if header_length > MAX_HEADER or length > limit:
            raise WireError(f"a frame of {header_length} + {length} bytes, at most {MAX_HEADER} + {limit} are taken")
        text = bytearray(header_length)
        self._fill(memoryview(text))
        try:
            header = json.loads(text) if text else {}
        except ValueError as error:
            raise WireError(f"a frame's header is no JSON: {error}") from None
        if not isinstance(header, dict):
            raise WireError("a frame's header is no JSON object")
        if len(self._buffer) < length:
            self._buffer = np.empty(length, np.uint8)
        payload = self._buffer[:length]
        if length:
            self._fill(payload.data)
        self.received += _START.size + header_length + length
        return Frame(Kind(kind), header, payload)

    def close(self) -> None:
        """Close it, also under a thread that waits for it."""
        with contextlib.suppress(OSError):  # The peer was quicker.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _fill(self, view: memoryview, may_end: bool = False) -> bool:
        filled = 0
        while filled < len(view):
            count = self._socket.recv_into(view[filled:])
            if not count:
                if may_end and not filled:
                    return False
                raise WireError("the peer broke off in the middle of a frame")
            filled += count
        return True


def connect(address: str, timeout: float) -> Connection:
    """A connection to `host:port`.

    Raises:
        OSError: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout)
    sock.settimeout(None)
    return Connection(sock)
