"""A worker's side: pull weights into a model, push its gradients.

    with headrace.training.session() as run:
        client = run.parameter_server(model, learning_rate=0.01)
        for step in range(client.step, STEPS):
            client.pull()
            loss_of(model, batch(step)).backward()
            client.push()
        client.finish()

`pull` and `push` are called at every step; whether anything is sent is decided by pushEvery and pullEvery. In between,
with SGD on the servers, a worker follows its own gradients (Dean et al. 2012, algorithm 1). A server that does not
answer is tried again, at growing distances, until it is back from its checkpoint.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from headrace.api.trainingjob import ParameterServer
from headrace.training.environment import Environment
from headrace.training.errors import ConfigurationError
from headrace.training.parameter_server.compression import Plain, codec
from headrace.training.parameter_server.environment import addresses, spec
from headrace.training.parameter_server.layout import Shard
from headrace.training.parameter_server.link import CONNECT_TIMEOUT, Link, Patience
from headrace.training.parameter_server.observer import Observer, Parameters
from headrace.training.parameter_server.wire import Connection, Frame, Kind, connect

logger = logging.getLogger(__name__)

HEARTBEAT = 2.0
"""Seconds between two signs of life."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes in one direction.

    Attributes:
        plain: What the values take as float32.
        wire: What was sent for them, frames and greetings included.
    """

    plain: int = 0
    wire: int = 0

    @property
    def ratio(self) -> float:
        """How many times less was sent."""
        return self.plain / self.wire if self.wire else 1.0


class _Part:
    """One server's share of the model on this side."""

    def __init__(self, link: Link, settings: ParameterServer, device: Any) -> None:
        import torch

        self.link = link
        self.gradients = codec(settings.compression, link.shard)
        self.differences = codec(settings.compression, link.shard, memory=False)
        self.pending = torch.zeros(link.shard.size, device=device)
        self.weights = torch.zeros(link.shard.size, device=device)
        self.version = 0

    def take(self, answer: Frame) -> None:
        """Put an answer's weights in place."""
        if answer.header["whole"]:
            self.weights.copy_(Plain(self.link.shard.size).decode(answer.payload))
        else:
            self.weights.add_(self.differences.decode(answer.payload).to(self.weights.device))
        self.version = answer.header["version"]


class Client:
    """A worker of a parameter server.

    Args:
        addresses: `host:port` of each server, in the order of their numbers.
        model: The torch module; its parameters become the servers' weights. Buffers (running means) are its own.
        settings: The spec.
        rank: This worker.
        learning_rate: Step size of the servers' optimizer; may be changed at any time.
        run_id: Identity of the run.
        fingerprint: Of the settings that the weights depend on: a checkpoint with another one is not used.
        patience: Seconds in which a server that went away must be back.
        first_patience: Seconds in which it must be there at first.
        stop: Whether the process was told to stop.

    Attributes:
        step: Steps taken so far by this worker or those before it in its place; where its work goes on.
        version: Updates of the first server's weights when they were last pulled.

    Raises:
        ConfigurationError: the servers refuse this worker.
        ServerLost: a server is not there.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        model: Any,
        settings: ParameterServer,
        rank: int = 0,
        *,
        learning_rate: float,
        run_id: str = "",
        fingerprint: str = "",
        patience: float = 300.0,
        first_patience: float = 600.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model = Parameters(model, len(addresses), fingerprint)
        if not self._model.tensors:
            raise ConfigurationError("model", "it has no parameter that requires a gradient", "give it one to train")
        self.learning_rate = learning_rate
        self._rank = rank
        self._settings = settings
        self._synchronous = settings.consistency == "Synchronous"
        self._parameters = self._model.tensors
        self._addresses = list(addresses)
        self._incarnation = uuid.uuid4().hex
        self._closed = threading.Event()
        self._patience = Patience(first_patience, lambda: stop() or self._closed.is_set())
        self._clock: int | None = None
        self._sequence = 0
        self._since_push = self._since_pull = 0
        self._weight = 0.0
        self._begun = self._fresh = False
        self._plain_pushed = self._plain_pulled = 0
        self.step = 0
        self._look = partial(Observer, addresses, model, run_id=run_id, fingerprint=fingerprint)
        self._identity = {"run": run_id, "model": self._model.digest}
        self._parts = [self._part(*pair) for pair in zip(addresses, self._model.shards, strict=True)]
        self._pool = ThreadPoolExecutor(len(self._parts), thread_name_prefix="parameter-server")
        self._join()
        self._patience.seconds = patience
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    @property
    def version(self) -> int:
        return self._parts[0].version

    @property
    def pushed(self) -> Traffic:
        """What this worker sent."""
        return Traffic(self._plain_pushed, sum(part.link.sent for part in self._parts))

    @property
    def pulled(self) -> Traffic:
        """What was sent to this worker."""
        return Traffic(self._plain_pulled, sum(part.link.received for part in self._parts))

    def pull(self) -> None:
        """Put the servers' weights into the model, when it is time. Waits where the consistency asks for it.

        Raises:
            ServerLost, ConfigurationError: as for the constructor.
        """
        fresh, self._fresh = self._fresh, False  # The last push may have brought weights with it.
        if not fresh and (not self._begun or self._since_pull >= self._settings.pull_every):
            self._exchange(push=False, pull=True)

    def push(self, gradients: Sequence[Any] | None = None, rows: float = 1.0) -> None:
        """Take this step's gradients, and send their sum when it is time; those in the model are then None.

        Args:
            gradients: One per parameter of the model that requires one, in the model's order; by default their
                `.grad`, where None counts as zero. They are of the mean loss over this worker's rows.
            rows: Rows behind them: a Synchronous round weighs workers by them.

        Raises:
            ServerLost, ConfigurationError: as for the constructor.
        """
        taken = [item.grad for item in self._parameters] if gradients is None else list(gradients)
        self._add(taken)
        for item in self._parameters:
            item.grad = None
        self._weight = rows
        self.step += 1
        self._since_push += 1
        self._since_pull += 1
        pull = self._since_pull >= self._settings.pull_every
        if self._since_push >= self._settings.push_every:
            self._exchange(push=True, pull=pull)
            self._fresh = pull
        if not pull and self._settings.optimizer == "SGD":
            for item, gradient in zip(self._parameters, taken, strict=True):
                if gradient is not None:
                    item.data.sub_(gradient, alpha=self.learning_rate)

    def finish(self) -> None:
        """Send what is left and say that this worker has taken all its steps: nobody waits for it any more.

        Raises:
            ServerLost, ConfigurationError: as for the constructor.
        """
        if self._since_push:
            self._exchange(push=True, pull=False)
        self._each(lambda part: part.link.ask(Kind.FINISH, {}))

    def wait_for_all(self, timeout: float = float("inf")) -> bool:
        """Wait until every worker of the run has finished, then put the final weights into the model.

        Args:
            timeout: Seconds.

        Returns:
            Whether all have finished; otherwise the weights are of when the time was over or the process was told to
            stop.
        """
        deadline = time.monotonic() + timeout
        pause = 0.05
        while not (done := all(facts["allFinished"] for facts in self.status())):
            if time.monotonic() >= deadline or self._patience.stop():
                break
            time.sleep(pause)
            pause = min(1.0, 2 * pause)
        self.peek()
        return done

    def peek(self) -> None:
        """Put the servers' weights into the model as they are, without waiting and without a clock."""

        observer = self._look(patience=self._patience)
        try:
            observer.pull()
        finally:
            observer.close()

    def status(self) -> list[dict[str, Any]]:
        """What each server says about itself and the workers."""
        return [frame.header for frame in self._each(lambda part: part.link.ask(Kind.STATUS, {}))]

    def close(self) -> None:
        """Leave; a worker that has not finished counts as lost."""
        self._closed.set()
        for part in self._parts:
            part.link.close()
        self._pool.shutdown(wait=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _part(self, address: str, shard: Shard) -> _Part:
        def hello() -> dict[str, Any]:
            mine = {"rank": self._rank, "incarnation": self._incarnation, "clock": self._clock}
            return self._identity | mine | {"matrices": shard.matrices}

        def give_again(connection: Connection) -> None:
            if self._rank == 0:
                # The server had no checkpoint yet: it begins with what was last seen of it.
                buffers, _ = Plain(shard.size).encode(part.weights)
                connection.send(Kind.INITIALIZE, {}, buffers)
                connection.receive(0)

        part = _Part(Link(address, shard, hello, self._patience, give_again), self._settings, self._device)
        return part

    @property
    def _device(self) -> Any:
        return self._parameters[0].device

    def _join(self) -> None:
        """Find out where this worker goes on; rank 0 gives the servers their first weights."""
        self._each(lambda part: part.link.greet())
        welcomes = [part.link.welcome for part in self._parts]
        self._clock = max(welcome["round" if self._synchronous else "clock"] for welcome in welcomes)
        self.step = self._clock if self._synchronous else max(welcome["step"] for welcome in welcomes)
        if self._rank != 0:
            return
        self._add(self._parameters)
        self._each(self._initialize)

    def _initialize(self, part: _Part) -> None:
        part.weights.copy_(part.pending)
        part.pending.zero_()
        if not part.link.welcome["initialized"]:
            buffers, _ = Plain(part.link.shard.size).encode(part.weights)
            part.link.ask(Kind.INITIALIZE, {}, buffers)

    def _exchange(self, push: bool, pull: bool) -> None:
        header: dict[str, Any] = {"push": push, "pull": pull, "first": not self._begun}
        if push:
            self._clock = (self._clock or 0) + 1
            self._sequence += 1
            header |= {
                "step": self.step,
                "sequence": self._sequence,
                "learningRate": float(self.learning_rate),
                "weight": float(self._weight),
            }
        header["clock"] = self._clock

        def ask(part: _Part) -> None:
            buffers = part.gradients.encode(part.pending)[0] if push else []
            answer = part.link.ask(Kind.EXCHANGE, header, buffers)
            if push:
                part.pending.zero_()
            if pull:
                part.take(answer)

        self._each(ask)
        size = 4 * sum(part.link.shard.size for part in self._parts)
        if push:
            self._plain_pushed += size
            self._since_push = 0
        if pull:
            self._plain_pulled += size
            self._since_pull = 0
            self._begun = True
            for part in self._parts:
                self._model.put(part.link.shard, part.weights)

    def _each(self, task: Callable[[_Part], T]) -> list[T]:
        """Do something with every server at the same time."""
        if len(self._parts) == 1:
            return [task(self._parts[0])]
        return list(self._pool.map(task, self._parts))

    def _add(self, tensors: Sequence[Any]) -> None:
        """Add one tensor per parameter to what is to be sent."""
        for part in self._parts:
            self._model.add(tensors, part.link.shard, part.pending)

    def _beat(self) -> None:
        """Signs of life on connections of their own. What goes wrong shows on the others."""
        connections: dict[str, Connection] = {}
        header = {"rank": self._rank, "incarnation": self._incarnation}
        while not self._closed.wait(HEARTBEAT):
            for address in self._addresses:
                try:
                    if address not in connections:
                        connections[address] = connect(address, CONNECT_TIMEOUT)
                    connections[address].send(Kind.HEARTBEAT, header)
                    if connections[address].receive(0) is None:
                        raise ConnectionError("the server closed the connection")
                except OSError as error:
                    logger.debug("no heartbeat to %s: %s", address, error)
                    broken = connections.pop(address, None)
                    if broken is not None:
                        broken.close()
        for connection in connections.values():
            connection.close()


def join(
    told: Environment, model: Any, learning_rate: float, fingerprint: str = "", stop: Callable[[], bool] = lambda: False
) -> Client:
    """Take part in the run that this process belongs to.

    Raises:
        ConfigurationError: the run has no servers, or they refuse this worker.
        ServerLost: a server is not there.
    """
    return Client(
        addresses(os.environ),
        model,
        spec(told),
        told.rank,
        learning_rate=learning_rate,
        run_id=told.run_id,
        fingerprint=fingerprint,
        patience=told.collective_timeout,
        first_patience=told.rendezvous_timeout,
        stop=stop,
    )
