"""A small HTTP client of the Kubernetes API: JSON in, JSON out, and every failure one typed error.

Who to talk to and as whom comes from the official client (`kubernetes.aio.config`: kubeconfig with all its credential
plugins, or the pod's rotating ServiceAccount token). The requests themselves do not go through its generated models:
the operator handles objects as plain JSON, thousands of them, and building typed objects of each would cost several
times the memory and the time of everything else it does.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config
from yarl import URL

from controllers.runtime.objects import Key, ObjectType

APPLY_PATCH: Final = "application/apply-patch+yaml"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON: Final = "application/json"
METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""Accept header of a list that leaves out all but the objects' metadata."""

METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Likewise of one object."""

NO_ANSWER: Final = 0
"""Status of an ApiError for a request that got no answer: whether it was carried out is unknown."""

WEIGHT: Final = 0.02
"""Share of the newest request in `ApiClient.latency`: the last hundred or so make the average."""

Observer = Callable[[str, int, float], None]
"""Called with the method, the status (NO_ANSWER for none) and the seconds of every request."""


class NotLeader(Exception):
    """Raised by `before_write` when this process may no longer write."""


class ApiError(Exception):
    """The API server refused a request, failed at it, or did not answer.

    Attributes:
        status: HTTP status, or NO_ANSWER.
        reason: metav1.Status.reason, such as Conflict or NotFound; Timeout or ConnectionFailed without an answer.
        message: metav1.Status.message.
        details: metav1.Status.details.
        retry_after: Seconds the server asked to wait, or None.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else f"{reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details or {}
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may well succeed later, without anybody changing anything."""
        # 401: tokens and the keys that verify them are rotated, and a server that has just started may know them later.
        return self.status in (NO_ANSWER, 401, 408, 409, 429) or self.status >= 500

    def caused_by(self, reason: str) -> bool:
        """Whether one of the details' causes has this reason."""
        return any(cause.get("reason") == reason for cause in self.details.get("causes") or ())

    @classmethod
    def of(cls, status: int, body: bytes, retry_after: str | None = None) -> ApiError:
        """The error of a response body, which is a metav1.Status unless something in between answered."""
        wait = float(retry_after) if retry_after and retry_after.isdigit() else None
        try:
            answer = orjson.loads(body)
            details = answer.get("details") or {}
            wait = wait if wait is not None else details.get("retryAfterSeconds")
            return cls(status, answer.get("reason") or "", answer.get("message") or "", details, wait)
        except (orjson.JSONDecodeError, AttributeError):
            return cls(status, "", body[:200].decode(errors="replace"), None, wait)


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the API server is and how to authenticate."""

    server: str
    ssl_context: ssl.SSLContext
    configuration: Configuration = field(repr=False)
    proxy: str | None = None

    async def headers(self) -> dict[str, str]:
        """Authorization of a request made now; rotating tokens are read again when they are about to expire."""
        settings = await self.configuration.auth_settings()
        return {item["key"]: item["value"] for item in settings.values() if item["in"] == "header" and item["value"]}


async def load_connection(kubeconfig: Path | None = None) -> Connection:
    """The connection of a kubeconfig, or of the pod this process runs in.

    Raises:
        kubernetes.aio.config.ConfigException: There is neither, or it says nothing usable.
    """
    configuration = Configuration()
    if kubeconfig is not None:
        await load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
    else:
        load_incluster_config(client_configuration=configuration)
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    # Clusters' own CAs often lack extensions that strict RFC 5280 checks ask for; the chain is verified all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return Connection(configuration.host.rstrip("/"), context, configuration, configuration.proxy)


def collection_path(type_: ObjectType, namespace: str = "") -> str:
    """Path of the objects of a type, of all namespaces when none is given."""
    root = f"/apis/{type_.api_version}" if "/" in type_.api_version else f"/api/{type_.api_version}"
    return f"{root}/namespaces/{namespace}/{type_.plural}" if namespace else f"{root}/{type_.plural}"


def object_path(type_: ObjectType, key: Key, subresource: str = "") -> str:
    """Path of one object or of its subresource."""
    path = f"{collection_path(type_, key.namespace)}/{key.name}"
    return f"{path}/{subresource}" if subresource else path


class ApiClient:
    """Requests to one API server over one pool of connections. Close it when done."""

    def __init__(
        self,
        connection: Connection,
        *,
        observe: Observer | None = None,
        before_write: Callable[[], None] | None = None,
        timeout: float = 30.0,
        user_agent: str = "headrace",
    ) -> None:
        """
        Args:
            connection: The API server.
            observe: Told of every request.
            before_write: Called before every request that is no GET; raises NotLeader to stop it.
            timeout: Seconds for a whole request.
            user_agent: Shown in the API server's audit log.
        """
        self._connection = connection
        self._observe = observe
        self._before_write = before_write
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self.latency = 0.0
        """Seconds that the API server took for an answer lately: an average in which a request counts for `WEIGHT`."""

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(
        self, path: str, params: Mapping[str, str] | None = None, *, accept: str | None = None
    ) -> dict[str, Any]:
        """GET as JSON; `accept` asks for another form of it, such as METADATA_LIST."""
        return await self.request("GET", path, params=params, accept=accept)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """One request, its answer as JSON; `seconds` overrides the client's timeout.

        Raises:
            ApiError: Anything but a 2xx answer.
        """
        if self._before_write is not None and method != "GET":
            self._before_write()
        headers = await self._connection.headers()
        if accept is not None:
            headers["Accept"] = accept
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = body if isinstance(body, bytes) else orjson.dumps(body)
        started = time.monotonic()
        status = NO_ANSWER
        try:
            async with self._open().request(
                method,
                self._connection.server + path,
                params=params,
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds) if seconds is not None else self._timeout,
                proxy=self._connection.proxy,
            ) as response:
                content = await response.read()
                status = response.status
                if status >= 400:
                    raise ApiError.of(status, content, response.headers.get("Retry-After"))
                answer: dict[str, Any] = orjson.loads(content)
                return answer
        except TimeoutError as error:
            raise ApiError(NO_ANSWER, "Timeout", f"{method} {path}: no answer in time") from error
        except aiohttp.ClientError as error:
            raise ApiError(NO_ANSWER, "ConnectionFailed", f"{method} {path}: {error}") from error
        except orjson.JSONDecodeError as error:
            raise ApiError(NO_ANSWER, "NoJSON", f"{method} {path}: the answer is no JSON: {error}") from error
        finally:
            self._tell(method, status, started)
            if status != NO_ANSWER:
                self.latency += WEIGHT * (time.monotonic() - started - self.latency)

    async def stream(self, path: str, params: Mapping[str, str], *, silence: float) -> AsyncIterator[dict[str, Any]]:
        """Lines of JSON until the server ends the stream.

        Args:
            path: Path of the request.
            params: Query of the request.
            silence: Seconds without a byte after which the connection counts as dead.

        Raises:
            ApiError: The request was refused, or the connection broke.
        """
        started = time.monotonic()
        status = NO_ANSWER
        try:
            async with self._open().get(
                self._connection.server + path,
                params=params,
                headers=await self._connection.headers(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence),
                proxy=self._connection.proxy,
            ) as response:
                status = response.status
                self._tell("GET", status, started)
                if status >= 400:
                    raise ApiError.of(status, await response.read(), response.headers.get("Retry-After"))
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line:
                            yield orjson.loads(line)
        except TimeoutError as error:
            raise ApiError(NO_ANSWER, "Timeout", f"watch {path}: silent for {silence:g} s") from error
        except aiohttp.ClientError as error:
            raise ApiError(NO_ANSWER, "ConnectionFailed", f"watch {path}: {error}") from error
        except orjson.JSONDecodeError as error:
            raise ApiError(NO_ANSWER, "NoJSON", f"watch {path}: the answer is no JSON: {error}") from error
        finally:
            if status == NO_ANSWER:
                self._tell("GET", status, started)

    def session(self, listener: Callable[[URL, int], None]) -> aiohttp.ClientSession:
        """A session with this server's TLS and credentials, for a library that brings its own requests.

        Args:
            listener: Told of the URL and status of every answer.
        """

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            request.headers.update(await self._connection.headers())
            started = time.monotonic()
            status = NO_ANSWER
            try:
                response = await handler(request)
                status = response.status
                listener(request.url, status)
                return response
            finally:
                self._tell(request.method, status, started)

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._connection.ssl_context),
            headers={"User-Agent": self._user_agent},
            proxy=self._connection.proxy,
            middlewares=(authorize,),
        )

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._connection.server

    def _open(self) -> aiohttp.ClientSession:
        # Made on first use, because a session belongs to the event loop that makes it.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._connection.ssl_context, keepalive_timeout=75),
                headers={"User-Agent": self._user_agent, "Accept": JSON},
                auto_decompress=True,
                read_bufsize=2**18,
            )
        return self._session

    def _tell(self, method: str, status: int, started: float) -> None:
        if self._observe is not None:
            self._observe(method, status, time.monotonic() - started)
