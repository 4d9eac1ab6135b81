"""A step that gives the answer that the same request was given last, in place of one that nobody has now.

Two requests are the same when everything in them but their id is. Answers are kept in memory, those used last, bounded
in number, bytes and age; each router has its own. An answer that is given again says its age.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from headrace.api.inferenceservice import LastAnswer
from headrace.api.meta import parse_duration
from headrace.serving.chain import Reason, Unanswered
from headrace.serving.messages import Query, Reply

MAX_BYTES = 64 * 1024 * 1024
"""Bytes of all answers kept."""


@dataclass(frozen=True, slots=True)
class _Kept:
    reply: Reply
    given: float


class LastAnswerStep:
    """Answers kept, and given again.

    Args:
        name: Name of the step.
        spec: For how long, and how many.
        clock: Monotonic seconds.
    """

    def __init__(self, name: str, spec: LastAnswer, clock: Callable[[], float]) -> None:
        self.name = name
        self._max_age = parse_duration(spec.max_age).total_seconds()
        self._max_age_text = spec.max_age
        self._max_entries = spec.max_entries
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._bytes = 0

    @property
    def unavailable(self) -> str:
        return "" if self._kept else "no answer was given yet that could be given again"

    def keep(self, query: Query, reply: Reply) -> None:
        """Keep a good answer of another step."""
        key = _key(query)
        if key is None or len(reply.body) > MAX_BYTES // 16:
            return
        self._forget(key)
        self._kept[key] = _Kept(reply, self._clock())
        self._bytes += len(reply.body)
        while len(self._kept) > self._max_entries or self._bytes > MAX_BYTES:
            self._forget(next(iter(self._kept)))

    async def answer(self, query: Query, deadline: float) -> Reply:
        key = _key(query)
        kept = self._kept.get(key) if key is not None else None
        if key is None or kept is None:
            raise Unanswered(Reason.NOT_READY, "this request was not answered lately")
        age = self._clock() - kept.given
        if age > self._max_age:
            self._forget(key)
            raise Unanswered(Reason.NOT_READY, f"its last answer is older than maxAge {self._max_age_text}")
        self._kept.move_to_end(key)
        return _with_id(kept.reply, query, int(age))

    async def metadata(self) -> bytes | None:
        """Unknown to this step."""
        return None

    def _forget(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept.reply.body)


def _split(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    length = len(body) if json_length is None or not json_length.isdigit() else int(json_length)
    return body[:length], body[length:]


def _key(query: Query) -> bytes | None:
    """What makes a request the same; None where it is no valid one."""
    head, binary = _split(query.body, query.json_length)
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict):
        return None
    document.pop("id", None)
    digest = hashlib.blake2b(orjson.dumps(document, option=orjson.OPT_SORT_KEYS), digest_size=16)
    digest.update(binary)
    return digest.digest()


def _with_id(reply: Reply, query: Query, age: int) -> Reply:
    """The answer under the id of the request that it is now given to."""
    head, binary = _split(reply.body, reply.json_length)
    document = orjson.loads(head)
    asked = orjson.loads(_split(query.body, query.json_length)[0]).get("id")
    document.pop("id", None)
    if asked:
        document["id"] = asked
    head = orjson.dumps(document)
    length = None if reply.json_length is None else str(len(head))
    return Reply(reply.status, head + binary, length, age)
