"""A router on a real socket, in front of replicas that stall, drip, reset, answer garbage, refuse or overload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest
from tritonclient.http import InferenceServerClient, InferInput

from headrace.api.chain import Chain, RouterReport
from headrace.serving.drain import Leaving, Times, serve
from headrace.serving.http import ProtocolServer
from headrace.serving.router import Router, RouterSettings
from tests.unit.serving import fakes, models
from tests.unit.serving.waiting import until

STATIC = {
    "name": "last",
    "static": {"outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "data": [0.25, 0, 1]}]},
}
BODY = b'{"inputs":[{"name":"x","shape":[2,4],"datatype":"FP32","data":[1,2,3,4,5,6,7,8]}]}'


class Running:
    """A router that listens, and what it reports."""

    def __init__(self, router: Router, port: int, session: aiohttp.ClientSession) -> None:
        self.router = router
        self.port = port
        self.session = session
        self.grpc_port = 0
        self.reports: list[RouterReport] = []

    async def infer(self, body: bytes = BODY, **headers: str) -> tuple[aiohttp.ClientResponse, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.port}/v2/models/demo/infer"
        async with self.session.post(url, data=body, headers=named) as response:
            return response, await response.json()

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(f"http://127.0.0.1:{self.port}{path}") as response:
            return response.status, await response.text()

    async def until(self, true: Callable[[], bool], what: str) -> None:
        await until(true, what)

    @property
    def answering(self) -> str:
        return self.reports[-1].answering if self.reports else "?"


@asynccontextmanager
async def running(
    replicas: list[fakes.FakeReplica],
    *fallback: dict[str, Any],
    hosts: Callable[[], list[str]] | None = None,
    grpc: bool = False,
    by_host: dict[str, list[str]] | None = None,
    traffic: Path | None = None,
    request_log: dict[str, Any] | None = None,
    **predictor: Any,
) -> AsyncIterator[Running]:
    port = replicas[0].port if replicas else 1
    chain = Chain.model_validate(
        {
            "name": "demo",
            "namespace": "ns",
            "predictor": {"host": "demo-predictor.ns.svc", "port": port, "timeout": "400ms", **predictor},
            "fallback": list(fallback),
            "requestLog": request_log,
        }
    )

    async def lookup(host: str, port: int) -> list[str]:
        if by_host is not None:
            return by_host[host]
        return hosts() if hosts else [fake.host for fake in replicas]

    leaving = Leaving()
    reports: list[RouterReport] = []
    settings = RouterSettings(period=0.05, times=Times(0, 5), traffic=traffic)
    router = Router(chain, settings, leaving, reports.append, lookup)
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    grpc_ports: list[int] = []
    server = asyncio.ensure_future(
        serve(
            ProtocolServer(router, router.metrics.registry, max_body=100_000, body_timeout=0.3),
            "127.0.0.1",
            0,
            leaving,
            settings.times,
            router.tasks(),
            listening.set_result,
            grpc_port=0 if grpc else None,
            on_grpc=grpc_ports.append,
        )
    )
    async with aiohttp.ClientSession() as session:
        try:
            found = Running(router, await asyncio.wait_for(listening, 10), session)
            found.reports = reports
            found.grpc_port = grpc_ports[0] if grpc else 0
            await found.until(lambda: bool(reports), "a first report")
            yield found
        finally:
            leaving.begin()
            await server
            router.close()


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    return {"name": "small", "model": {"storageUri": f"file://{models.linear(tmp_path / 'model.onnx', 0.5)}"}}


async def test_the_request_goes_on_as_it_came_and_the_answer_comes_back_as_it_is() -> None:
    async with fakes.replicas(fakes.answer) as [one], running([one], STATIC) as router:
        odd = b'{ "inputs" : [{"name":"x","shape":[1],"datatype":"FP32","data":[1]}] }\n'
        response, answer = await router.infer(odd, traceparent="00-1-2-3", headrace_timeout_ms="200")
        assert one.bodies == [odd]
        assert b"traceparent: 00-1-2-3\r\n" in one.heads[0]
        assert answer["id"] == one.host
        assert response.headers["headrace-step"] == "predictor"
        assert "headrace-fallback-reason" not in response.headers


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (fakes.stall, "timeout"),
        (fakes.drip, "timeout"),
        (fakes.reset, "error"),
        (fakes.half, "error"),
        (fakes.no_http, "error"),
        (fakes.no_json, "error"),
        (fakes.status(500), "error"),
        (fakes.status(404), "error"),
        (fakes.status(503), "error"),
        (fakes.status(503, "Retry-After: 1"), "overloaded"),
        (fakes.status(429), "overloaded"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_primary_that_fails_everywhere_is_followed_by_the_fallback(
    behaviour: fakes.Behaviour, reason: str
) -> None:
    async with fakes.replicas(behaviour, behaviour) as both, running(both, STATIC, timeout="200ms") as router:
        response, answer = await router.infer()
        assert response.status == 200
        assert response.headers["headrace-step"] == "last"
        assert response.headers["headrace-fallback-reason"] == f"predictor={reason}"
        assert answer["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [0.25, 0.0, 1.0, 0.25, 0.0, 1.0]}
        ]
        assert all(fake.asked for fake in both)


@pytest.mark.parametrize(
    "behaviour",
    [fakes.stall, fakes.reset, fakes.half, fakes.no_http, fakes.no_json, fakes.status(500), fakes.status(503)],
    ids=lambda value: value.__name__,
)
async def test_one_bad_replica_of_two_costs_no_answer(behaviour: fakes.Behaviour) -> None:
    async with fakes.replicas(behaviour, fakes.answer) as [bad, good], running([bad, good], timeout="300ms") as router:
        for _ in range(6):
            response, answer = await router.infer()
            assert (response.status, answer["id"]) == (200, good.host)
            assert response.headers["headrace-step"] == "predictor"
        assert bad.asked >= 1


async def test_a_frozen_replica_costs_one_slow_answer_and_is_asked_again_when_it_thaws() -> None:
    async with fakes.replicas(fakes.stall, fakes.answer) as [frozen, good], running([frozen, good]) as router:
        for _ in range(20):
            assert (await router.infer())[0].status == 200
        assert frozen.asked == 1
        frozen.behaviour = fakes.answer

        async def thawed() -> bool:
            return bool((await router.infer())[1]["id"] == frozen.host)

        await until(thawed, "the thawed replica is asked again")


async def test_a_replica_that_freezes_with_many_requests_on_it_costs_no_answer() -> None:
    async with fakes.replicas(fakes.stall, fakes.answer) as [frozen, good], running([frozen, good]) as router:
        answers = await asyncio.gather(*(router.infer() for _ in range(40)))
        assert frozen.asked > 10
        assert {response.status for response, _ in answers} == {200}
        assert {answer["id"] for _, answer in answers} == {good.host}


async def test_a_restarted_replica_is_asked_again_without_a_failed_request() -> None:
    async with fakes.replicas(fakes.answer) as [one], running([one], STATIC) as router:
        assert (await router.infer())[0].headers["headrace-step"] == "predictor"
        await one.stop()
        await router.until(lambda: router.answering == "last", "the fallback answers")
        assert (await router.infer())[0].headers["headrace-fallback-reason"] == "predictor=not-ready"
        await one.start(one.port)
        await router.until(lambda: router.answering == "predictor", "the predictor answers again")
        assert (await router.infer())[0].headers["headrace-step"] == "predictor"


async def test_a_connection_that_the_replica_closed_after_an_answer_is_no_failure() -> None:
    used: set[asyncio.StreamWriter] = set()

    async def answer_once(fake: fakes.FakeReplica, writer: asyncio.StreamWriter) -> None:
        # Like an idle timeout that runs out just as the next request is on its way.
        if writer in used:
            writer.transport.abort()
            return
        used.add(writer)
        await fakes.answer(fake, writer)

    async with fakes.replicas(answer_once) as [one], running([one], STATIC) as router:
        for _ in range(10):
            assert (await router.infer())[0].headers["headrace-step"] == "predictor"
        assert (await router.get("/metrics"))[1].count('reason="error",service="demo"} 0.0') == 2


async def test_the_breaker_opens_is_reported_and_closes_without_traffic() -> None:
    breaker = {"minimumNumberOfCalls": 2, "slidingWindowSize": 4, "waitDurationInOpenState": "300ms"}
    async with (
        fakes.replicas(fakes.status(500)) as [one],
        running([one], STATIC, circuitBreaker=breaker) as router,
    ):
        assert router.answering == "predictor"
        reasons = [(await router.infer())[0].headers["headrace-fallback-reason"] for _ in range(3)]
        assert reasons == ["predictor=error", "predictor=error", "predictor=open"]
        assert router.answering == "last"
        assert [step.state for step in router.reports[-1].steps] == ["Open", "Answering"]
        assert (
            'headrace_inference_breaker_state{service="demo",step="predictor"} 2.0' in (await router.get("/metrics"))[1]
        )
        one.behaviour = fakes.answer
        # Nobody asks meanwhile: probes of the readiness endpoint take the place of the trial calls.
        await router.until(lambda: router.answering == "predictor", "the predictor answers again")
        assert (await router.infer())[0].headers["headrace-step"] == "predictor"


async def test_a_wrong_request_is_answered_by_the_primary_and_never_falls_back() -> None:
    async with fakes.replicas(fakes.status(400)) as [one], running([one], STATIC) as router:
        for _ in range(8):
            response, answer = await router.infer()
            assert (response.status, answer) == (400, {"error": "told to"})
            assert response.headers["headrace-step"] == "predictor"
        assert router.answering == "predictor"


async def test_no_replicas_and_no_fallback_is_an_answer_that_says_so() -> None:
    async with running([]) as router:
        response, answer = await router.infer()
        assert response.status == 503
        assert answer["error"] == (
            "no step of 'demo' could answer: predictor: not-ready (the predictor has no ready replicas)"
        )
        assert response.headers["headrace-fallback-reason"] == "predictor=not-ready"
        assert (await router.get("/v2/health/live"))[0] == 200
        status, text = await router.get("/v2/health/ready")
        assert status == 503
        assert "predictor: the predictor has no ready replicas" in text


async def test_a_fallback_model_answers_with_its_own_numbers_and_tritonclient_reads_them(small: dict[str, Any]) -> None:
    async with running([], small, STATIC) as router:
        await router.until(lambda: router.answering == "small", "the fallback model is loaded")
        x = np.arange(8, dtype=np.float32).reshape(2, 4)

        def ask() -> tuple[Any, Any, bool]:
            with InferenceServerClient(f"127.0.0.1:{router.port}") as client:
                tensor = InferInput("x", [2, 4], "FP32")
                tensor.set_data_from_numpy(x)
                return (
                    client.infer("demo", [tensor]).as_numpy("y"),
                    client.get_model_metadata("demo"),
                    client.is_model_ready("demo"),
                )

        y, metadata, ready = await asyncio.to_thread(ask)
        np.testing.assert_allclose(y, models.expected(x, 0.5), rtol=1e-5)
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert ready
        response, answer = await router.infer(BODY.replace(b"[2,4]", b"[4,2]"))
        assert response.status == 400
        assert "'x': expected shape [-1, 4]" in answer["error"]
        assert response.headers["headrace-step"] == "small"


async def test_a_fallback_model_that_cannot_be_loaded_yet_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    small = {"name": "small", "model": {"storageUri": f"file://{file}"}}
    async with running([], small, STATIC) as router:
        await router.until(lambda: str(file) in router.reports[-1].steps[1].reason, "the reason is reported")
        assert [step.state for step in router.reports[-1].steps] == ["NotReady", "NotReady", "Answering"]
        assert (await router.get("/v2/health/ready"))[0] == 200
        assert (await router.infer())[0].headers["headrace-fallback-reason"] == "predictor=not-ready,small=not-ready"
        models.linear(file)
        await router.until(lambda: router.answering == "small", "the model is loaded at last")


async def test_the_deadline_of_a_request_holds_for_the_whole_chain() -> None:
    async with fakes.replicas(fakes.stall) as [one], running([one], STATIC, timeout="30s") as router:
        begun = asyncio.get_running_loop().time()
        response, _ = await router.infer(headrace_timeout_ms="200")
        assert response.headers["headrace-step"] == "last"
        assert asyncio.get_running_loop().time() - begun < 3
        assert (await router.infer(headrace_timeout_ms="soon"))[0].status == 400


async def test_a_replica_that_ran_out_of_the_callers_time_does_not_open_the_breaker() -> None:
    async with fakes.replicas(fakes.status(504)) as [one], running([one], STATIC, timeout="30s") as router:
        for _ in range(30):
            response, _ = await router.infer(headrace_timeout_ms="200")
            assert response.headers["headrace-fallback-reason"] == "predictor=timeout"


async def test_dns_that_fails_is_no_news_and_dns_that_is_empty_is_checked() -> None:
    answers: list[Callable[[], list[str]]] = []
    looks = 0

    def hosts() -> list[str]:
        nonlocal looks
        looks += 1
        return answers[0]()

    async def some_looks() -> None:
        enough = looks + 3
        await until(lambda: looks >= enough, "a few looks")

    def broken() -> list[str]:
        raise OSError("temporary failure in name resolution")

    async with fakes.replicas(fakes.answer) as [one]:
        answers.append(lambda: [one.host])
        async with running([one], STATIC, hosts=hosts) as router:
            for dns in (broken, list):
                answers[0] = dns
                await some_looks()
                assert (await router.infer())[0].headers["headrace-step"] == "predictor"
            await one.stop()
            await router.until(lambda: router.answering == "last", "the dead replica is gone")


async def test_limits_on_what_comes_in() -> None:
    async with running([], STATIC) as router:
        response, answer = await router.infer(b"x" * 100_001)
        assert response.status == 413
        assert "100000 bytes" in answer["error"]
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"POST /v2/models/demo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert b"408" in await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        for path, words in {
            "/v2/models/other": ["unknown model 'other'", "serves 'demo'"],
            "/v2/models/demo/versions/7/ready": ["version '7'", "'1'"],
            "/v1/models": ["/v1/models", "Open Inference Protocol"],
            "/v2/models/demo/infer": ["POST"],
        }.items():
            status, text = await router.get(path)
            assert status in (404, 405)
            for word in words:
                assert word in orjson.loads(text)["error"]


async def test_figures_say_who_answered_and_why_not_another() -> None:
    async with fakes.replicas(fakes.status(500)) as [one], running([one], STATIC) as router:
        await router.infer()
        await router.infer(b"{}")
        _, text = await router.get("/metrics")
        for line in (
            'headrace_inference_requests_total{outcome="ok",service="demo",step="last"} 1.0',
            'headrace_inference_requests_total{outcome="client_error",service="demo",step="last"} 1.0',
            'headrace_inference_fallbacks_total{from_step="predictor",reason="error",service="demo"} 2.0',
            'headrace_inference_step_seconds_count{service="demo",step="predictor"} 2.0',
            'headrace_inference_replicas{service="demo"} 1.0',
            'headrace_inference_in_flight{service="demo",step="predictor"} 0.0',
        ):
            assert line in text
