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
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import orjson

from headrace.api.chain import PREDICTOR
from headrace.serving.balancer import Balancer, Readiness, Replica
from headrace.serving.chain import Reason, Unanswered
from headrace.serving.client import Answer, Client, request
from headrace.serving.http import DRAINING_HEADER, TIMEOUT_HEADER
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


METADATA_TIMEOUT = 1.0
"""Seconds for a replica's model metadata."""
_BINARY_HEADER = BINARY_HEADER.lower()
SILENCE = 0.45
"""Part of the step's timeout without an answer after which a replica counts as silent."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """A try without an answer.

    Attributes:
        understood: The replica read the request and said no, so that it need not be asked again.
    """

    reason: Reason
    message: str
    understood: bool = False


@dataclass(slots=True)
class _Tries:
    """The requests to replicas for one request.

    Attributes:
        running: Replica and starting time of each that has no outcome yet.
        tried: Replicas asked so far.
    """

    query: Query
    deadline: float
    running: dict[asyncio.Future[Answer], tuple[Replica, float]]
    tried: list[Replica]


class RemoteStep:
    """The predictor's replicas as a step.

    Args:
        model_name: Name of the model that the replicas serve.
        client: HTTP client.
        balancer: The replicas.
        timeout: Seconds that the step has for an answer.
    """

    name = PREDICTOR

    def __init__(self, model_name: str, client: Client, balancer: Balancer, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._metadata_path = f"/v2/models/{model_name}"
        self._infer_path = f"{self._metadata_path}/infer"
        self._client = client
        self._balancer = balancer
        self._timeout = timeout
        self._budget = BUDGET_BURST
        self._metadata: bytes | None = None

    @property
    def unavailable(self) -> str:
        if not self._balancer.replicas:
            return "the predictor has no ready replicas"
        if not self._balancer.any_alive:
            return "no replica of the predictor answers its readiness endpoint"
        return ""

    async def answer(self, query: Query, deadline: float) -> Reply:
        now = self._loop.time()
        hedge_at = (now + deadline) / 2
        self._budget = min(self._budget + BUDGET_SHARE, BUDGET_BURST)
        tries = _Tries(query, deadline, {}, [])
        failure = _Failure(Reason.NOT_READY, "the predictor has no replicas")
        hedged = False
        try:
            self._launch(tries, now)
            while tries.running:
                done = await self._wait(tries.running, None if hedged else hedge_at)
                if not done:
                    hedged = True
                    if self._budget >= 1 and self._launch(tries, self._loop.time(), only_other=True):
                        self._budget -= 1
                for future in done:
                    replica, _ = tries.running.pop(future)
                    result = self._judge(replica, future)
                    if isinstance(result, Reply):
                        self._blame_silent(tries)
                        return result
                    failure = result
                if not tries.running and len(tries.tried) < MAX_TRIES:
                    self._launch(tries, self._loop.time(), only_other=failure.understood)
        except asyncio.CancelledError:
            self._blame_silent(tries)
            raise
        finally:
            for future in tries.running:
                future.cancel()
        raise Unanswered(failure.reason, failure.message)

    async def _wait(
        self, running: Collection[asyncio.Future[Answer]], until: float | None
    ) -> list[asyncio.Future[Answer]]:
        """Those that have an outcome, as soon as there is one; none of them by `until`.

        asyncio.wait does the same for anything awaitable, at several times the cost.
        """
        waiter = self._loop.create_future()

        def wake(_: object = None) -> None:
            if not waiter.done():
                waiter.set_result(None)

        timer = None if until is None else self._loop.call_at(until, wake)
        for future in running:
            future.add_done_callback(wake)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            for future in running:
                future.remove_done_callback(wake)
        return [future for future in running if future.done()]

    def _launch(self, tries: _Tries, now: float, *, only_other: bool = False) -> bool:
        """Ask one more replica, rather one that has not been asked; whether there was one."""
        replica = self._balancer.pick(tries.tried)
        if replica is None and not only_other:
            replica = self._balancer.pick()
        if replica is None:
            return False
        query = tries.query
        headers = {
            "Content-Type": JSON if query.json_length is None else BINARY,
            TIMEOUT_HEADER: str(max(1, int((tries.deadline - now) * 1000))),
            **query.headers,
        }
        if query.json_length is not None:
            headers[BINARY_HEADER] = query.json_length
        message = request("POST", self._infer_path, replica.address, headers, query.body)
        future = self._client.send(replica.address, message)
        replica.outstanding += 1
        future.add_done_callback(replica.answer_done)
        tries.tried.append(replica)
        tries.running[future] = (replica, now)
        return True

    def _blame_silent(self, tries: _Tries) -> None:
        """Set aside the replicas that had time enough and said nothing; a caller's short deadline is no such time."""
        now = self._loop.time()
        for future, (replica, started) in tries.running.items():
            if not future.done() and now - started >= self._timeout * SILENCE:
                seconds = self._balancer.failed(replica, silent=True)
                log.warning(
                    "replica silent",
                    extra={"fields": {"replica": replica.address.host, "set_aside_seconds": seconds}},
                )

    def _err(self, replica: Replica, status: int, headers: Mapping[str, str]) -> None:
        """Count an error of one replica. Having no room or no time is none."""
        if _reason(status, headers) is Reason.ERROR and (seconds := self._balancer.erred(replica)):
            log.warning(
                "replica errs",
                extra={"fields": {"replica": replica.address.host, "status": status, "set_aside_seconds": seconds}},
            )

    def _judge(self, replica: Replica, future: asyncio.Future[Answer]) -> Reply | _Failure:
        """What a replica's answer means."""
        who = replica.address.host
        error = future.exception()
        if error is not None:
            self._balancer.failed(replica, silent=False)
            return _Failure(Reason.ERROR, f"{who}: {error or type(error).__name__}")
        answer = future.result()
        status, headers, body = answer.status, answer.headers, answer.body
        if DRAINING_HEADER in headers:
            replica.readiness = Readiness.LEAVING
        if status in REFUSALS:
            self._balancer.answered(replica)
            return Reply(status, body)
        if status != 200:
            self._err(replica, status, headers)
            return _Failure(_reason(status, headers), f"{who}: HTTP {status}: {_text(body)}", understood=True)
        json_length = headers.get(_BINARY_HEADER)
        if not body.startswith(b"{") or not _fits(json_length, body):
            self._err(replica, status, headers)
            return _Failure(Reason.ERROR, f"{who}: the answer is not of the Open Inference Protocol", understood=True)
        self._balancer.answered(replica)
        return Reply(status, body, json_length)

    async def metadata(self) -> bytes | None:
        """Body of the model metadata from a replica; the last known while none answers."""
        replica = self._balancer.pick()
        if replica is None or self.unavailable:
            return self._metadata
        try:
            async with asyncio.timeout(METADATA_TIMEOUT):
                answer = await self._client.send(
                    replica.address, request("GET", self._metadata_path, replica.address, {})
                )
            if answer.status == 200 and _is_metadata(answer.body):
                self._metadata = answer.body
        except OSError:
            # TimeoutError is one too. The last known metadata is as good as before.
            self._balancer.failed(replica, silent=False)
        return self._metadata


def _reason(status: int, headers: Mapping[str, str]) -> Reason:
    """What an answer that is none means. A replica that ran out of the time it was given says 504."""
    if status == 504:
        return Reason.TIMEOUT
    overloaded = status == 429 or (status == 503 and "retry-after" in headers)
    return Reason.OVERLOADED if overloaded else Reason.ERROR


def _fits(json_length: str | None, body: bytes) -> bool:
    return json_length is None or (json_length.isdigit() and int(json_length) <= len(body))


def _is_metadata(body: bytes) -> bool:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict) and all(isinstance(found.get(name), list) for name in ("inputs", "outputs"))


def _text(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:100].decode(errors="replace")
