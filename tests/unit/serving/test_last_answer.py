"""The answer that the same request was given last."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from headrace.api.inferenceservice import LastAnswer
from headrace.serving import last_answer
from headrace.serving.chain import Unanswered
from headrace.serving.last_answer import LastAnswerStep
from headrace.serving.messages import Query, Reply
from tests.unit.serving import fakes
from tests.unit.serving.test_router import BODY, STATIC, running


class World:
    """A step and its time."""

    def __init__(self, **spec: Any) -> None:
        self.now = 100.0
        self.step = LastAnswerStep("last", LastAnswer(**spec), lambda: self.now)


def query(value: float, **more: Any) -> Query:
    return Query(orjson.dumps({"inputs": [{"name": "x", "data": [value]}], **more}))


def reply(value: float, **more: Any) -> Reply:
    return Reply(200, orjson.dumps({"outputs": [{"name": "y", "data": [value]}], **more}))


async def value(world: World, asked: Query) -> float:
    found = await world.step.answer(asked, 0)
    return float(orjson.loads(found.body)["outputs"][0]["data"][0])


async def test_the_same_request_gets_its_last_answer_under_its_own_id_and_its_age() -> None:
    world = World()
    assert world.step.unavailable
    world.step.keep(query(1, id="a"), reply(0.5, id="a"))
    world.step.keep(query(1, id="b"), reply(0.75, id="b"))
    assert not world.step.unavailable
    world.now += 7
    found = await world.step.answer(query(1, id="c"), 0)
    assert (orjson.loads(found.body), found.age) == ({"outputs": [{"name": "y", "data": [0.75]}], "id": "c"}, 7)
    assert "id" not in orjson.loads((await world.step.answer(query(1), 0)).body)
    with pytest.raises(Unanswered, match="not answered lately"):
        await world.step.answer(query(2), 0)


async def test_binary_values_are_part_of_the_request_and_of_the_answer() -> None:
    world = World()
    head = orjson.dumps({"id": "a", "inputs": [{"name": "x", "parameters": {"binary_data_size": 4}}]})
    answer = orjson.dumps({"id": "a", "outputs": [{"name": "y", "parameters": {"binary_data_size": 2}}]})
    world.step.keep(Query(head + b"1234", str(len(head))), Reply(200, answer + b"yz", str(len(answer))))
    found = await world.step.answer(Query(head + b"1234", str(len(head))), 0)
    assert found.json_length is not None
    assert found.body[int(found.json_length) :] == b"yz"
    with pytest.raises(Unanswered):
        await world.step.answer(Query(head + b"1235", str(len(head))), 0)


async def test_an_answer_grows_too_old() -> None:
    world = World(max_age="10s")
    world.step.keep(query(1), reply(0.5))
    world.now += 10
    assert await value(world, query(1)) == 0.5
    world.now += 1
    with pytest.raises(Unanswered, match="older than maxAge 10s"):
        await world.step.answer(query(1), 0)
    assert world.step.unavailable, "it is not kept any longer"


async def test_those_used_last_are_kept_within_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_entries=2)
    for number in (1, 2):
        world.step.keep(query(number), reply(number))
    assert await value(world, query(1)) == 1
    world.step.keep(query(3), reply(3))
    assert (await value(world, query(1)), await value(world, query(3))) == (1, 3)
    with pytest.raises(Unanswered):
        await world.step.answer(query(2), 0)
    monkeypatch.setattr(last_answer, "MAX_BYTES", 16 * len(reply(1).body))
    for number in range(100):
        world.step.keep(query(number), reply(1))
    monkeypatch.setattr(last_answer, "MAX_BYTES", 2 * len(reply(1).body))
    big = World()
    big.step.keep(query(1), reply(1))
    assert big.step.unavailable, "an answer that would fill the room is not kept"


async def test_what_is_no_request_is_not_kept() -> None:
    world = World()
    world.step.keep(Query(b"[1]"), reply(1))
    world.step.keep(Query(b"nonsense"), reply(1))
    assert world.step.unavailable


async def test_a_router_gives_the_last_answer_when_the_primary_has_none() -> None:
    last = {"name": "remembered", "lastAnswer": {"maxAge": "1m"}}
    async with fakes.replicas(fakes.answer) as [one], running([one], last, STATIC) as router:
        first, answer = await router.infer()
        assert (first.headers["headrace-step"], "Age" in first.headers) == ("predictor", False)
        one.behaviour = fakes.status(500)
        response, again = await router.infer()
        assert (response.headers["headrace-step"], response.headers["Age"]) == ("remembered", "0")
        assert response.headers["headrace-fallback-reason"] == "predictor=error"
        assert again["outputs"] == answer["outputs"]
        other, _ = await router.infer(BODY.replace(b"[1,2", b"[9,2"))
        assert other.headers["headrace-step"] == "last"
        assert other.headers["headrace-fallback-reason"] == "predictor=error,remembered=not-ready"
