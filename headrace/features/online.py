"""The online store in Redis (or Valkey): what lies where, and how to connect.

Everything of a FeatureSet and one transform has the prefix `headrace:features:{<namespace>/<name>}:<hash>`; the braces
keep it in one slot of a Redis Cluster, so that its changes are transactions there too.

    :current          the version that readers see, `<version>.<sequence>`
    :state            JSON of `State`: what that version is
    :rows:<version>   a hash: entity key -> packed row; while it is current, `MARK` -> content of `:current`
    :versions         a set: every version of which rows may exist
    :progress:<v>     JSON: how far an unfinished version is
    :popular          a sorted set: entity key -> how often it was asked for
    :changes          a channel: what changed, for caches

`:current`, `:state` and the marks change in one transaction, after every row of the version is there: readers see the
old version or the new one. The version's rows never change afterwards, save by an incremental refresh, which changes
its rows and the sequence in one transaction. Readers ask for rows and the mark in one command: when the mark is the one
that they know, the rows are current and whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
from pydantic import Field, ValidationError
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from headrace.api.schema import Model

VARIABLE = "HEADRACE_ONLINE_STORE_URI"
MARK = b"\xff"
"""Field of the mark; no key of an entity, which is UTF-8, can be that."""
CONNECT_TIMEOUT = 2.0
"""Seconds for a connection."""
SCHEMES = "redis://, rediss://, redis+sentinel://host,host/master/0 or redis+cluster://host,host"


class OnlineStoreError(Exception):
    """The online store cannot be used: who was asked, what was found, what to do."""


class State(Model):
    """What the version that readers see is."""

    version: str
    """Name of the version."""
    sequence: int = 0
    """How many incremental refreshes it took since."""
    entities: int = 0
    """Rows."""
    source_version: str = ""
    """Version of the source, see `headrace.features.source`."""
    files: dict[str, str] = Field(default_factory=dict)
    """Files of the source that it was made from, with what tells their versions apart."""
    refreshed_at: str = ""
    """RFC 3339 time at which readers began to see it."""

    @property
    def current(self) -> bytes:
        """Content of `:current`."""
        return f"{self.version}.{self.sequence}".encode()

    @classmethod
    def read(cls, data: bytes | None) -> State | None:
        """The state in the store; None where there is none that can be read."""
        if not data:
            return None
        try:
            return cls.model_validate_json(data)
        except ValidationError:
            return None


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of all that belongs to one transform of one FeatureSet."""

    namespace: str
    name: str
    hash: str

    @property
    def base(self) -> str:
        """Prefix of the FeatureSet, whatever its transform."""
        return f"headrace:features:{{{self.namespace}/{self.name}}}"

    def of(self, what: str) -> str:
        """The key `:<what>`."""
        return f"{self.base}:{self.hash}:{what}"

    def rows(self, version: str) -> str:
        """The hash with the rows of a version."""
        return self.of(f"rows:{version}")

    @property
    def hashes(self) -> str:
        """A set: every transform of the FeatureSet of which anything may exist."""
        return f"{self.base}:hashes"


@dataclass(frozen=True, slots=True)
class Address:
    """An online store's address, read."""

    mode: str
    url: str
    hosts: tuple[tuple[str, int], ...] = ()
    master: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False

    @property
    def shown(self) -> str:
        """For messages: without the password."""
        return ",".join(f"{host}:{port}" for host, port in self.hosts)


def parse_address(uri: str) -> Address:
    """Read an address.

    Raises:
        OnlineStoreError: It is none.
    """
    parts = urlsplit(uri)
    scheme, _, mode = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss") or mode not in ("", "sentinel", "cluster"):
        raise OnlineStoreError(f"the online store's address has the scheme {parts.scheme!r}: write {SCHEMES}")
    credentials, _, where = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    default = 26379 if mode == "sentinel" else 6379
    hosts = []
    for item in where.split(","):
        host, _, port = item.rpartition(":") if ":" in item else (item, "", "")
        if not host or (port and not port.isdigit()):
            raise OnlineStoreError(f"the online store's address names no host in {item!r}: write {SCHEMES}")
        hosts.append((host, int(port or default)))
    path = [part for part in parts.path.split("/") if part]
    master = path.pop(0) if mode == "sentinel" and path else ""
    if mode == "sentinel" and not master:
        raise OnlineStoreError("the online store's address names no master: write redis+sentinel://host,host/master/0")
    if path and not path[0].isdigit():
        raise OnlineStoreError(
            f"the online store's address ends in {path[0]!r}: write the number of the database there"
        )
    return Address(
        mode or "single",
        uri,
        tuple(hosts),
        master,
        int(path[0]) if path else 0,
        unquote(username) or None,
        unquote(password) or None,
        scheme == "rediss",
    )


def connect(uri: str, timeout: float = 10.0) -> Any:
    """A blocking client; opens no connection yet (for a Cluster it does).

    Args:
        uri: The address.
        timeout: Seconds for an answer.

    Raises:
        OnlineStoreError: The address is none, or the Cluster does not answer.
    """
    address = parse_address(uri)
    options = _options(address, timeout) | {"retry": Retry(ExponentialWithJitterBackoff(1.0, 0.05), 3)}
    try:
        if address.mode == "cluster":
            nodes = [redis.cluster.ClusterNode(host, port) for host, port in address.hosts]
            return RedisCluster(startup_nodes=nodes, **options)
        if address.mode == "sentinel":
            sentinel = Sentinel(list(address.hosts), sentinel_kwargs={"socket_timeout": timeout}, **options)
            return sentinel.master_for(address.master, db=address.database)
        host, port = address.hosts[0]
        return redis.Redis(host=host, port=port, db=address.database, **options)
    except redis.RedisError as error:
        raise unusable(address, error) from error


def connect_async(uri: str, timeout: float = 1.0, connections: int = 64) -> Any:
    """An asyncio client; opens no connection yet.

    Raises:
        OnlineStoreError: The address is none.
    """
    address = parse_address(uri)
    options = _options(address, timeout) | {"retry": AsyncRetry(ExponentialWithJitterBackoff(0.2, 0.01), 1)}
    if address.mode == "cluster":
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in address.hosts]
        return AsyncRedisCluster(startup_nodes=nodes, **options)
    if address.mode == "sentinel":
        sentinel = AsyncSentinel(list(address.hosts), sentinel_kwargs={"socket_timeout": timeout}, **options)
        return sentinel.master_for(address.master, db=address.database, max_connections=connections)
    host, port = address.hosts[0]
    pool = redis.asyncio.BlockingConnectionPool(
        host=host,
        port=port,
        db=address.database,
        max_connections=connections,
        timeout=timeout,
        **({"connection_class": redis.asyncio.SSLConnection} if options.pop("ssl", False) else {}),
        **options,
    )
    return redis.asyncio.Redis.from_pool(pool)


def _options(address: Address, timeout: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "username": address.username,
        "password": address.password,
        "socket_timeout": timeout,
        "socket_connect_timeout": min(timeout, CONNECT_TIMEOUT),
    }
    if address.tls:
        options["ssl"] = True
    return options


def unusable(address: Address, error: Exception) -> OnlineStoreError:
    """What a failure of the client means for whoever reads it."""
    text = " ".join(str(error).split())
    if isinstance(error, redis.AuthenticationError) or "NOAUTH" in text or "WRONGPASS" in text:
        remedy = f"correct user and password in {VARIABLE}"
    elif isinstance(error, redis.OutOfMemoryError) or text.startswith("OOM"):
        remedy = "give the store more memory, or keep fewer features"
    else:
        remedy = f"check {VARIABLE} and that the store is running"
    return OnlineStoreError(f"the online store at {address.shown} cannot be used: {text}; {remedy}")
