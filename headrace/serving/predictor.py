"""The predictor: one model behind the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from headrace.api.inferenceservice import Batching, ModelSource
from headrace.api.meta import parse_duration
from headrace.drift import Drift
from headrace.serving.batcher import Batcher
from headrace.serving.cpus import cpu_limit
from headrace.serving.drain import Leaving, Times, serve
from headrace.serving.http import ProtocolServer, error, respond
from headrace.serving.messages import Query, Reply, encoded, infer, understand
from headrace.serving.metrics import PredictorMetrics
from headrace.serving.models.base import Model
from headrace.serving.models.onnx_model import OnnxModel
from headrace.serving.pool import ModelPool, Overloaded
from headrace.serving.protocol import model_metadata
from headrace.serving.server import Response
from headrace.serving.source import Loaded
from headrace.serving.source import load as load_from_source
from headrace.serving.tensors import Array, RequestError
from headrace.storage import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

LOAD_PATIENCE = 60.0
"""Seconds during which an unreachable store is asked again before the process gives up."""
INLINE = 256 * 1024
"""Bytes of a request or an answer up to which it is decoded or encoded on the event loop, where they are batched."""
RETRY_AFTER = {"Retry-After": "1"}


@dataclass(frozen=True, slots=True)
class PredictorSettings:
    """Command line of a predictor.

    Attributes:
        model: Its format and where it is.
        code: The Python file of a model of format Python.
        waiting: Requests that may wait for a thread before more are refused.
        batching: How requests run together; None where each runs by itself.
    """

    name: str
    model: ModelSource
    code: Path | None = None
    port: int = 8080
    host: str | None = None
    grpc_port: int | None = None
    waiting: int = 64
    times: Times = field(default_factory=Times)
    batching: Batching | None = None


class Predictor:
    """The endpoint of one model.

    Args:
        name: Name of the model.
        pool: Its threads.
        metrics: Where requests are counted.
        leaving: Whether the process is on its way out.
    """

    def __init__(self, name: str, pool: ModelPool, metrics: PredictorMetrics, leaving: Leaving) -> None:
        self.model_name = name
        self.model: Model | None = None
        self.batcher: Batcher | None = None
        self.drift: Drift | None = None
        self._pool = pool
        self._metrics = metrics
        self._leaving = leaving

    unit_header = ""

    @property
    def draining(self) -> bool:
        return self._leaving.begun

    def not_ready(self) -> str:
        """Why it cannot answer."""
        if self.draining:
            return "the server is draining"
        return "" if self.model is not None else "the model is being loaded"

    async def metadata(self) -> bytes | None:
        """Body of the model metadata."""
        if self.model is None:
            return None
        return model_metadata(self.model_name, self.model.platform, self.model.inputs, self.model.outputs)

    async def infer(self, query: Query, patience: float | None) -> Response:
        """Run the model; a request whose caller has left or whose time is over is dropped."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        response = await self._infer(query, None if patience is None else begun + patience)
        self._metrics.request(response.status, loop.time() - begun)
        return response

    async def _infer(self, query: Query, deadline: float | None) -> Response:
        model = self.model
        if model is None:
            return error(503, "not ready: the model is being loaded", RETRY_AFTER)
        try:
            async with asyncio.timeout_at(deadline) if deadline is not None else nullcontext():
                if self.batcher is not None:
                    return respond(await self._together(self.batcher, model, query))
                # Only runs that can be stopped are tried on the event loop.
                size = len(query.body) if isinstance(model, OnnxModel) else None
                return respond(
                    await self._pool.run(lambda stop: infer(self.model_name, model, query, stop, self._watch), size)
                )
        except RequestError as wrong:
            return error(wrong.status, str(wrong))
        except Overloaded:
            return error(503, "overloaded: every thread is busy and the queue is full; try again", RETRY_AFTER)
        except TimeoutError:
            return error(504, "the request's deadline passed before the model answered")

    def _watch(self, model: Model, inputs: Mapping[str, Array]) -> None:
        """Count the rows of what was answered; a model of a table has one input."""
        if self.drift is not None and len(model.inputs) == 1:
            self.drift.observe(inputs[model.inputs[0].name])

    async def _together(self, batcher: Batcher, model: Model, query: Query) -> Reply:
        request, wanted = await _beside(len(query.body), lambda: understand(model, query))
        arrays = await batcher.run(request.inputs, [output.name for output in wanted])
        self._watch(model, request.inputs)
        size = sum(array.nbytes for array in arrays)
        return await _beside(size, lambda: encoded(self.model_name, request, wanted, arrays))


async def _beside(size: int, work: Callable[[], T]) -> T:
    """Do small work here and large work in a thread, so that it does not keep others waiting."""
    return work() if size <= INLINE else await asyncio.to_thread(work)


async def load(
    source: ModelSource,
    threads: int,
    code: Path | None = None,
    patience: float = LOAD_PATIENCE,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Loaded:
    """Load the model, asking an unreachable store again for a while.

    Raises:
        ModelError: there is no model that can be served there.
        StorageError: the store refuses, or did not answer for `patience` seconds.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + patience
    pause = 1.0
    while True:
        try:
            return await asyncio.to_thread(load_from_source, source, None, threads, code)
        except StorageError as failed:
            if not failed.retryable or loop.time() + pause > give_up:
                raise
            log.warning("storage does not answer; trying again", extra={"fields": {"reason": str(failed)}})
        await sleep(pause)
        pause = min(pause * 2, 10.0)


async def run_predictor(settings: PredictorSettings, leaving: Leaving) -> None:
    """Serve one model until asked to leave.

    Raises:
        ModelError: there is no model that can be served.
        StorageError: the store refuses or does not answer.
    """
    cpus = cpu_limit()
    pool = ModelPool(cpus, settings.waiting)
    metrics = PredictorMetrics(settings.name, lambda: pool.in_flight)
    predictor = Predictor(settings.name, pool, metrics, leaving)

    async def become_ready() -> None:
        loaded = await load(settings.model, cpus, settings.code)
        model = loaded.model
        if loaded.drift is not None:
            predictor.drift = loaded.drift
            metrics.drift(loaded.drift)
        if settings.batching is not None:
            latency = parse_duration(settings.batching.max_latency).total_seconds()
            size = settings.batching.max_size
            predictor.batcher = Batcher(model, pool, size, latency, size * (cpus + 1) + settings.waiting, metrics.batch)
        predictor.model = model
        log.info(
            "model loaded",
            extra={
                "fields": {
                    "model": settings.name,
                    "format": settings.model.model_format,
                    "uri": settings.model.storage_uri,
                    "threads": cpus,
                    "inputs": [spec.manifest() for spec in model.inputs],
                    "outputs": [spec.manifest() for spec in model.outputs],
                }
            },
        )

    try:
        await serve(
            ProtocolServer(predictor, metrics.registry),
            settings.host,
            settings.port,
            leaving,
            settings.times,
            [become_ready()],
            grpc_port=settings.grpc_port,
        )
    finally:
        pool.close()
