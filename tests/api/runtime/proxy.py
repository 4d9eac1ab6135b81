"""A proxy in front of a real API server that fails, delays and cuts as a test wants.

It speaks plain HTTP to the client and the server's TLS to the server, adds the administrator's token, and narrows
lists and watches of all namespaces to one, so that many tests share an API server without seeing each other's
objects.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import yaml
from aiohttp import web
from kubernetes.aio.client import Configuration

from controllers.runtime.client import Connection

Fault = Literal["refused", "lost", "hangs", "conflict"]
"""refused: 500 and not carried out. lost: carried out, answered 500. hangs: carried out, never answered.
conflict: 409 and not carried out."""

_COLLECTION = re.compile(r"^(/api/v1|/apis/[^/]+/[^/]+)/(widgets|pods|configmaps)$")


@dataclass(frozen=True, slots=True)
class Call:
    """One request as the proxy saw it."""

    method: str
    path: str
    watch: bool

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.method != "GET"


class Proxy:
    """The proxy; `fault_of` decides on the fate of each call by its number and what it is."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._server: str = cluster["server"]
        self._headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
        self._context = ssl.create_default_context(cadata=authority)
        self._namespace = namespace
        self._session: aiohttp.ClientSession | None = None
        self._watches: set[aiohttp.ClientResponse] = set()
        self.url = ""
        self.calls: list[Call] = []
        self.fault_of: Callable[[int, Call], Fault | None] = lambda number, call: None
        self.flowing = asyncio.Event()
        """While cleared, watches stay open and say nothing."""
        self.flowing.set()
        self.gone = False
        """Answer new watches with 410 Gone, once each."""
        self.refuse: int = 0
        """Answer every request with this status, unless 0."""

    @property
    def connection(self) -> Connection:
        """For an ApiClient."""
        return Connection(self.url, self._context, Configuration())

    def writes(self) -> list[Call]:
        """Calls that may have changed something."""
        return [call for call in self.calls if call.is_write]

    def cut_watches(self) -> None:
        """Break every watch that is open."""
        for response in tuple(self._watches):
            response.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        watch = request.query.get("watch") == "true"
        call = Call(request.method, request.path, watch)
        number = len(self.calls)
        self.calls.append(call)
        if self.refuse:
            return _status(self.refuse, "Refused", "the proxy refuses everything")
        fault = self.fault_of(number, call)
        if fault == "refused":
            return _status(500, "InternalError", "the proxy refused")
        if fault == "conflict":
            return _status(409, "Conflict", "the proxy says that somebody else was faster")
        path = _COLLECTION.sub(rf"\1/namespaces/{self._namespace}/\2", request.path)
        headers = {k: v for k, v in request.headers.items() if k in ("Accept", "Content-Type", "User-Agent")}
        assert self._session is not None
        if watch:
            if fault == "hangs":
                await asyncio.sleep(3600)
            if self.gone:
                self.gone = False
                return _status(410, "Expired", "too old resource version")
            return await self._stream(request, path, headers)
        async with self._session.request(
            request.method,
            self._server + path,
            params=request.query,
            data=await request.read() or None,
            headers=headers,
        ) as answer:
            body = await answer.read()
            if fault == "hangs":
                await asyncio.sleep(3600)
            if fault == "lost":
                return _status(500, "InternalError", "the proxy lost the answer")
            return web.Response(status=answer.status, body=body, content_type="application/json")

    async def _stream(self, request: web.Request, path: str, headers: dict[str, str]) -> web.StreamResponse:
        assert self._session is not None
        response = web.StreamResponse()
        async with self._session.get(self._server + path, params=request.query, headers=headers) as answer:
            if answer.status != 200:
                return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")
            self._watches.add(answer)
            await response.prepare(request)
            try:
                async for chunk in answer.content.iter_any():
                    await self.flowing.wait()
                    await response.write(chunk)
            except (aiohttp.ClientError, ConnectionResetError):
                pass
            finally:
                self._watches.discard(answer)
        return response


@asynccontextmanager
async def proxy(kubeconfig: Path, namespace: str) -> AsyncIterator[Proxy]:
    """A running proxy that shows one namespace."""
    instance = Proxy(kubeconfig, namespace)
    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", instance.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    instance.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    connector = aiohttp.TCPConnector(ssl=instance._context, limit=0)
    instance._session = aiohttp.ClientSession(
        connector=connector, headers=instance._headers, timeout=aiohttp.ClientTimeout(total=None)
    )
    try:
        yield instance
    finally:
        await instance._session.close()
        await runner.cleanup()


def expire_once(proxy: Proxy) -> Callable[[int, Call], Fault | None]:
    """Every path's next watch is answered 410 Gone."""
    expired: set[str] = set()

    def fault(_: int, call: Call) -> Fault | None:
        if call.watch and call.path not in expired:
            expired.add(call.path)
            proxy.gone = True
        return None

    return fault


def _status(code: int, reason: str, message: str) -> web.Response:
    body: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}
    return web.Response(status=code, text=json.dumps(body), content_type="application/json")
