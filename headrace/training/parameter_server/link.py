"""One server as one worker sees it: greeting, asking, and asking again until the server is back."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.training.errors import ConfigurationError
from headrace.training.parameter_server.layout import Shard
from headrace.training.parameter_server.wire import Connection, Frame, Kind, connect

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
"""Seconds for one attempt to connect."""
LONGEST_PAUSE = 2.0
"""Seconds between two attempts, at most."""


class ServerLost(Exception):
    """A server did not come back in time, or the worker was told to stop while it was away."""


class _Refused(Exception):
    """A server said that what was asked cannot be."""


@dataclass(slots=True)
class Patience:
    """How long a server may be away.

    Attributes:
        seconds: From the first failed attempt.
        stop: Whether to give up at once.
    """

    seconds: float
    stop: Callable[[], bool]


class Link:
    """The connection to one server; it is made when something is asked, and made again when it breaks.

    Args:
        address: `host:port`.
        shard: What the server holds.
        hello: What a worker says about itself, as it stands when it connects.
        patience: How long the server may be away.
        on_return: Called with the new connection when a server that was away has lost what it had been given.

    Attributes:
        shard: What the server holds.
        welcome: What the server said when it was last greeted.
    """

    def __init__(
        self,
        address: str,
        shard: Shard,
        hello: Callable[[], Mapping[str, Any]],
        patience: Patience,
        on_return: Callable[[Connection], None] = lambda connection: None,
    ) -> None:
        self.shard = shard
        self.welcome: dict[str, Any] = {}
        self._address = address
        self._hello = hello
        self._patience = patience
        self._on_return = on_return
        self._connection: Connection | None = None
        self._sent = self._received = 0

    @property
    def limit(self) -> int:
        """Bytes of the longest payload: float32, or what Int8 adds to a byte per value."""
        return 4 * self.shard.size + self.shard.size // 128 + 64

    @property
    def sent(self) -> int:
        """Bytes written to the server, over all connections."""
        return self._sent + (self._connection.sent if self._connection else 0)

    @property
    def received(self) -> int:
        """Bytes read from the server, over all connections."""
        return self._received + (self._connection.received if self._connection else 0)

    def greet(self) -> None:
        """Make sure that there is a connection.

        Raises:
            ServerLost: the server is not there.
            ConfigurationError: it refuses this worker.
        """
        self._patiently(lambda: self._connection or self._greet())

    def ask(self, kind: Kind, header: Mapping[str, Any], payload: Sequence[Any] = ()) -> Frame:
        """Ask and wait for the answer; sent again, as it is, when the connection breaks meanwhile.

        Raises:
            ServerLost: the server is not there any more.
            ConfigurationError: it refuses.
        """
        found: list[Frame] = []

        def attempt() -> None:
            connection = self._connection or self._greet()
            found.append(_answer(connection, kind, header, payload, self.limit))

        self._patiently(attempt)
        return found[-1]

    def close(self) -> None:
        """Drop the connection, where there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._sent += connection.sent
            self._received += connection.received

    def _greet(self) -> Connection:
        connection = connect(self._address, CONNECT_TIMEOUT)
        try:
            answer = _answer(connection, Kind.HELLO, self._hello(), (), 0)
            if self.welcome:
                logger.info("the server at %s is back", self._address)
                if not answer.header["initialized"]:
                    self._on_return(connection)
        except BaseException:
            connection.close()
            raise
        self.welcome, self._connection = answer.header, connection
        return connection

    def _patiently(self, attempt: Callable[[], object]) -> None:
        deadline = time.monotonic() + self._patience.seconds
        pause, told = 0.05, False
        while True:
            try:
                attempt()
                return
            except _Refused as refused:
                raise self._explained(str(refused)) from refused
            except OSError as error:
                self.close()
                if self._patience.stop() or time.monotonic() + pause > deadline:
                    raise ServerLost(f"the server at {self._address} cannot be reached: {error}") from error
                if not told:
                    logger.info("the server at %s cannot be reached (%s); trying again", self._address, error)
                    told = True
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(LONGEST_PAUSE, 2 * pause)

    def _explained(self, reason: str) -> ConfigurationError:
        if reason.startswith("ArithmeticError"):
            return ConfigurationError(
                "learningRate",
                f"the server at {self._address} refused a gradient: {reason}",
                "choose a smaller learning rate, or look for extreme values in the data",
            )
        return ConfigurationError(
            "parameterServer",
            f"the server at {self._address} refused: {reason}",
            "all workers and servers of a run need one image, one model and the same settings",
        )


def _answer(connection: Connection, kind: Kind, header: Mapping[str, Any], payload: Sequence[Any], limit: int) -> Frame:
    connection.send(kind, header, payload)
    answer = connection.receive(limit)
    if answer is None:
        raise ConnectionError("the server closed the connection")
    if answer.kind is Kind.REFUSED:
        raise _Refused(answer.header.get("reason", "no reason given"))
    return answer
