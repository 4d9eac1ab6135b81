"""Events are counted, not repeated, and a resource that flaps cannot fill the cluster with them."""

from __future__ import annotations

import asyncio
from typing import Any

from controllers.runtime.client import ApiError
from controllers.runtime.events import BURST, NOTE_LIMIT, SERIES_WINDOW, EventRecorder
from controllers.runtime.plan import Event

RESOURCE = {"apiVersion": "v1", "kind": "K", "metadata": {"name": "r", "namespace": "ns", "uid": "u"}}


class Api:
    """Remembers requests; answers 404 to patches of what expired."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.expired = False

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> dict[str, Any]:
        self.requests.append((method, path, body))
        if method == "PATCH" and self.expired:
            raise ApiError(404, "NotFound", "no such event")
        return {}


class Recorder:
    """A recorder with its API and a clock that stands still."""

    def __init__(self) -> None:
        self.api = Api()
        self.now = 0.0
        self.events = EventRecorder(self.api, clock=lambda: self.now)  # type: ignore[arg-type]

    async def emit(self, *events: Event) -> list[tuple[str, str, Any]]:
        """The requests that these Events cause."""
        before = len(self.api.requests)
        running = asyncio.create_task(self.events.run())
        for event in events:
            self.events.emit(RESOURCE, event)
        await self.events.drain(5)
        running.cancel()
        return self.api.requests[before:]


STARTED = Event("Normal", "Started", "attempt 1 starts")


async def test_the_first_is_created_and_an_equal_one_raises_its_count() -> None:
    recorder = Recorder()
    ((method, path, body),) = await recorder.emit(STARTED)
    assert (method, path) == ("POST", "/apis/events.k8s.io/v1/namespaces/ns/events")
    assert body["regarding"]["uid"] == "u"
    assert body["reason"] == "Started"
    (second,) = await recorder.emit(STARTED)
    assert second[0] == "PATCH"
    assert second[1] == f"{path}/{body['metadata']['name']}"
    assert second[2]["series"]["count"] == 2
    (third,) = await recorder.emit(STARTED)
    assert third[2]["series"]["count"] == 3


async def test_another_note_is_another_event_and_so_is_an_equal_one_much_later() -> None:
    recorder = Recorder()
    await recorder.emit(STARTED)
    assert (await recorder.emit(Event("Normal", "Started", "attempt 2 starts")))[0][0] == "POST"
    recorder.now = SERIES_WINDOW + 1
    assert (await recorder.emit(STARTED))[0][0] == "POST"


async def test_an_event_that_expired_in_the_cluster_is_created_again() -> None:
    recorder = Recorder()
    await recorder.emit(STARTED)
    recorder.api.expired = True
    assert [method for method, _, _ in await recorder.emit(STARTED)] == ["PATCH", "POST"]


async def test_a_resource_that_flaps_is_silenced_and_gets_its_voice_back_slowly() -> None:
    recorder = Recorder()
    flapping = [Event("Warning", "Flap", f"flap {number}") for number in range(BURST + 20)]
    assert len(await recorder.emit(*flapping)) == BURST
    recorder.now = 300.0  # client-go's spam filter: one more every 5 minutes
    assert len(await recorder.emit(*flapping[:3])) == 1


async def test_a_note_is_cut_to_what_the_api_server_accepts() -> None:
    recorder = Recorder()
    ((_, _, body),) = await recorder.emit(Event("Warning", "Long", "x" * 5000))
    assert len(body["note"].encode()) == NOTE_LIMIT
    ((_, _, body),) = await recorder.emit(Event("Warning", "Wide", "ü" * 1000))
    assert NOTE_LIMIT - 2 <= len(body["note"].encode()) <= NOTE_LIMIT


async def test_an_event_that_cannot_be_written_stops_nobody() -> None:
    recorder = Recorder()
    recorder.api.expired = True

    async def fail(*_: Any, **__: Any) -> dict[str, Any]:
        raise ApiError(500, "InternalError", "no")

    recorder.api.request = fail  # type: ignore[method-assign]
    await recorder.emit(STARTED, STARTED)
