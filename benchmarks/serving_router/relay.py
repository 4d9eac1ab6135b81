"""A relay that copies bytes and looks at none: the least that any hop costs here. `… relay LISTEN TARGET` (ports)."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class _Back(asyncio.Protocol):
    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.close()


class _Front(asyncio.Protocol):
    def __init__(self, target: int) -> None:
        self._target = target
        self._early = b""
        self._server: asyncio.Transport | None = None
        self._client: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = cast(asyncio.Transport, transport)
        self._opening = asyncio.ensure_future(self._open(self._client))

    async def _open(self, client: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        self._server, _ = await loop.create_connection(lambda: _Back(client), "127.0.0.1", self._target)
        if self._early:
            self._server.write(self._early)

    def data_received(self, data: bytes) -> None:
        if self._server is None:
            self._early += data
        else:
            self._server.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._server is not None:
            self._server.close()


async def relay(listen: int, target: int) -> None:
    """Relay until the process is ended."""
    server = await asyncio.get_running_loop().create_server(lambda: _Front(target), "127.0.0.1", listen)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(relay(int(sys.argv[1]), int(sys.argv[2])))
