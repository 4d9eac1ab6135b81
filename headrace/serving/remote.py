"""The primary: one request to one of its replicas, and to another while there is time.

The body goes on as the bytes that came. A replica that refuses or loses the connection, answers with a server error or
with something that is no answer is followed by another at once. One that is silent for half of the time is not given
up: another is asked beside it and the first answer counts, so that a frozen node costs a request time and nothing
else. These second requests have a budget (a tenth of the requests, and a burst), so that a primary that is slow
everywhere does not get twice the load. Inference changes nothing, so asking twice is safe.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import aiohttp
import orjson

from headrace.api.chain import PREDICTOR
from headrace.serving.balancer import Balancer, Replica
from headrace.serving.chain import Reason, Unanswered
from headrace.serving.http import TIMEOUT_HEADER
from headrace.serving.messages import BINARY, JSON, Query, Reply
from headrace.serving.protocol import BINARY_HEADER

log = logging.getLogger(__name__)

MAX_TRIES = 3
"""Requests to replicas for one request, the first included."""
REFUSALS = frozenset({400, 413, 415, 422})
"""Statuses by which a replica says that the request is wrong; any other is the replica's own trouble."""
BUDGET_SHARE = 0.1
"""Second requests beside a silent replica, per request."""
BUDGET_BURST = 64.0
"""Second requests that may come at once."""


SILENCE = 0.45
"""Part of the step's timeout without an answer after which a replica counts as silent."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """A try without an answer."""

    reason: Reason
    message: str


@dataclass(slots=True)
class _Tries:
    """The requests to replicas for one request.

    Attributes:
        running: Replica and starting time of each that has no outcome yet.
        tried: Replicas asked so far.
    """

    query: Query
    deadline: float
    running: dict[asyncio.Task[Reply | _Failure], tuple[Replica, float]]
    tried: list[Replica]


class RemoteStep:
    """The predictor's replicas as a step.

    Args:
        model_name: Name of the model that the replicas serve.
        session: Client with a keep-alive pool per replica and no timeouts of its own.
        balancer: The replicas.
        timeout: Seconds that the step has for an answer.
    """

    name = PREDICTOR

    def __init__(self, model_name: str, session: aiohttp.ClientSession, balancer: Balancer, timeout: float) -> None:
        self._path = f"/v2/models/{model_name}"
        self._session = session
        self._balancer = balancer
        self._timeout = timeout
        self._budget = BUDGET_BURST
        self._metadata: bytes | None = None

    @property
    def unavailable(self) -> str:
        if not self._balancer.replicas:
            return "the predictor has no ready replicas"
        if not self._balancer.any_ready:
            return "no replica of the predictor answers its readiness endpoint"
        return ""

    async def answer(self, query: Query, deadline: float) -> Reply:
        loop = asyncio.get_running_loop()
        hedge_at = (loop.time() + deadline) / 2
        self._budget = min(self._budget + BUDGET_SHARE, BUDGET_BURST)
        tries = _Tries(query, deadline, {}, [])
        failure = _Failure(Reason.NOT_READY, "the predictor has no replicas")
        hedged = False
        try:
            self._launch(tries)
            while tries.running:
                patience = None if hedged else max(0.0, hedge_at - loop.time())
                done, _ = await asyncio.wait(tries.running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    hedged = True
                    if self._budget >= 1 and self._launch(tries, only_other=True):
                        self._budget -= 1
                for task in done:
                    del tries.running[task]
                    result = task.result()
                    if isinstance(result, Reply):
                        self._blame_silent(tries)
                        return result
                    failure = result
                if not tries.running and len(tries.tried) < MAX_TRIES:
                    self._launch(tries)
        except asyncio.CancelledError:
            self._blame_silent(tries)
            raise
        finally:
            for task in tries.running:
                task.cancel()
        raise Unanswered(failure.reason, failure.message)

    def _launch(self, tries: _Tries, *, only_other: bool = False) -> bool:
        """Ask one more replica, rather one that has not been asked; whether there was one."""
        replica = self._balancer.pick(tries.tried)
        if replica is None and not only_other:
            replica = self._balancer.pick()
        if replica is None:
            return False
        tries.tried.append(replica)
        task = asyncio.ensure_future(self._try(replica, tries.query, tries.deadline))
        tries.running[task] = (replica, asyncio.get_running_loop().time())
        return True

    def _blame_silent(self, tries: _Tries) -> None:
        """Set aside the replicas that had time enough and said nothing; a caller's short deadline is no such time."""
        now = asyncio.get_running_loop().time()
        for replica, started in tries.running.values():
            if now - started >= self._timeout * SILENCE:
                seconds = self._balancer.failed(replica, silent=True)
                log.warning(
                    "replica silent", extra={"fields": {"replica": replica.address, "set_aside_seconds": seconds}}
                )

    async def _try(self, replica: Replica, query: Query, deadline: float) -> Reply | _Failure:
        remaining = deadline - asyncio.get_running_loop().time()
        headers = {
            "Content-Type": JSON if query.json_length is None else BINARY,
            TIMEOUT_HEADER: str(max(1, int(remaining * 1000))),
            **query.headers,
        }
        if query.json_length is not None:
            headers[BINARY_HEADER] = query.json_length
        replica.outstanding += 1
        try:
            async with self._session.post(
                f"{replica.url}{self._path}/infer", data=query.body, headers=headers, allow_redirects=False
            ) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            self._balancer.failed(replica, silent=False)
            return _Failure(Reason.ERROR, f"{replica.address}: {str(error) or type(error).__name__}")
        finally:
            replica.outstanding -= 1
        json_length = response.headers.get(BINARY_HEADER)
        status = response.status
        if status in REFUSALS:
            self._balancer.answered(replica)
            return Reply(status, body)
        if status != 200:
            overloaded = status == 429 or (status == 503 and "Retry-After" in response.headers)
            return _Failure(
                Reason.OVERLOADED if overloaded else Reason.ERROR,
                f"{replica.address}: HTTP {status}: {_error_text(body)}",
            )
        if not body.startswith(b"{") or not _fits(json_length, body):
            return _Failure(Reason.ERROR, f"{replica.address}: the answer is not of the Open Inference Protocol")
        self._balancer.answered(replica)
        return Reply(status, body, json_length)

    async def metadata(self) -> bytes | None:
        """Body of the model metadata from a replica; the last known while none answers."""
        replica = self._balancer.pick()
        if replica is None or self.unavailable:
            return self._metadata
        try:
            async with asyncio.timeout(1.0), self._session.get(f"{replica.url}{self._path}") as response:
                if response.status == 200:
                    self._metadata = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            self._balancer.failed(replica, silent=False)
        return self._metadata


def _fits(json_length: str | None, body: bytes) -> bool:
    return json_length is None or (json_length.isdigit() and int(json_length) <= len(body))


def _error_text(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:100].decode(errors="replace")
