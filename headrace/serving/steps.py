"""The steps that answer inside the router: a smaller model, and a fixed response."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from headrace.api.inferenceservice import StaticResponse, Tensor
from headrace.serving.chain import Reason, Unanswered
from headrace.serving.messages import Query, Reply, infer, refusal
from headrace.serving.models.base import Model, ModelError
from headrace.serving.pool import ModelPool, Overloaded
from headrace.serving.protocol import (
    TensorSpec,
    decode_request,
    encode_response,
    model_metadata,
    select_outputs,
)
from headrace.serving.tensors import Array, RequestError, from_json

log = logging.getLogger(__name__)

MAX_REPEATED = 2**18
"""Elements of all outputs of a static response: a request may name any number of empty rows, and the answer is made on
the event loop."""


class LocalStep:
    """A model that runs in the router's own threads.

    Args:
        name: Name of the step.
        model_name: Name of the service, which answers carry whoever made them.
        load: Fetches and loads the model; blocks, so it runs in a thread.
        pool: Threads that it shares with no other model.
        on_change: Told when the step becomes available.
    """

    def __init__(
        self,
        name: str,
        model_name: str,
        load: Callable[[], Model],
        pool: ModelPool,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.unavailable = "the model is being loaded"
        self.attempted = asyncio.Event()
        self._model_name = model_name
        self._load = load
        self._pool = pool
        self._on_change = on_change
        self._model: Model | None = None

    async def keep_loading(self, pause: Callable[[int], Awaitable[None]]) -> None:
        """Load the model, trying again for as long as it takes; `pause(n)` waits after the nth failure."""
        failures = 0
        while self._model is None:
            try:
                self._model = await asyncio.to_thread(self._load)
                self.unavailable = ""
                log.info("fallback model loaded", extra={"fields": {"step": self.name}})
            except Exception as error:
                failures += 1
                self.unavailable = str(error) or type(error).__name__
                log.warning(
                    "fallback model cannot be loaded; trying again",
                    extra={"fields": {"step": self.name, "reason": self.unavailable, "failures": failures}},
                    exc_info=None if isinstance(error, (ModelError, OSError)) else error,
                )
            self.attempted.set()
            self._on_change()
            if self._model is None:
                await pause(failures)

    async def answer(self, query: Query, deadline: float) -> Reply:
        model = self._model
        if model is None:
            raise Unanswered(Reason.NOT_READY, self.unavailable)
        try:
            return await self._pool.run(lambda stop: infer(self._model_name, model, query, stop))
        except RequestError as error:
            return refusal(error.status, str(error))
        except Overloaded:
            raise Unanswered(Reason.OVERLOADED, "every thread of the model is busy") from None

    async def metadata(self) -> bytes | None:
        """Body of the model metadata; None while it is not loaded."""
        if self._model is None:
            return None
        return model_metadata(self._model_name, self._model.platform, self._model.inputs, self._model.outputs)


class StaticStep:
    """A fixed answer, repeated for each row of the request.

    Raises:
        RequestError: a tensor's data does not fit its shape and datatype.
    """

    unavailable = ""

    def __init__(self, name: str, model_name: str, response: StaticResponse) -> None:
        self.name = name
        self._model_name = model_name
        self._rows = {tensor.name: _one_row(tensor) for tensor in response.outputs}
        self._row_size = sum(row.size for row in self._rows.values())
        self._specs = tuple(
            TensorSpec(tensor.name, tensor.datatype, (-1, *tensor.shape)) for tensor in response.outputs
        )

    async def answer(self, query: Query, deadline: float) -> Reply:
        try:
            request = decode_request(query.body, query.json_length)
            wanted = select_outputs(request, list(self._rows))
            if request.rows * self._row_size > MAX_REPEATED:
                raise RequestError(f"{request.rows} rows are too many for one request; send fewer", status=413)
            outputs = [(output, np.repeat(self._rows[output.name], request.rows, axis=0)) for output in wanted]
            body, json_length = encode_response(self._model_name, request, outputs)
        except RequestError as error:
            return refusal(error.status, str(error))
        return Reply(200, body, None if json_length is None else str(json_length))

    async def metadata(self) -> bytes | None:
        """Body of the model metadata; inputs are unknown, since any are taken."""
        nothing: Sequence[TensorSpec] = ()
        return model_metadata(self._model_name, "headrace_static", nothing, self._specs)


def _one_row(tensor: Tensor) -> Array:
    try:
        return from_json(tensor.name, tensor.datatype, [1, *tensor.shape], list(tensor.data))
    except RequestError as error:
        raise RequestError(str(error).replace("input", "static output", 1)) from None
