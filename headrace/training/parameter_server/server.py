"""One parameter server: takes connections, and a thread for each does what its worker asks.

A worker has two connections: one for its requests, one for heartbeats, which tells a worker that computes from one that
hangs. The threads spend their time in the kernel or in torch, both without the interpreter's lock.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace.api.trainingjob import ParameterServer
from headrace.storage import StorageError, Store
from headrace.training.parameter_server.checkpoint import ShardCheckpoints
from headrace.training.parameter_server.compression import Codec, Plain, buffer_of, codec
from headrace.training.parameter_server.layout import Piece, Shard
from headrace.training.parameter_server.state import Push, ShardState
from headrace.training.parameter_server.wire import Connection, Frame, Kind

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is told.

    Attributes:
        index: Number of the server.
        servers: Servers of the run.
        workers: Workers of the run.
        parameter_server: The spec.
        port: TCP port; 0 for a free one.
        run_id: Workers of another run are refused; an empty one takes all.
        storage_uri: Folder of the run; empty: nothing is saved.
        checkpoint_interval: Seconds between two checkpoints.
        checkpoint_keep: Checkpoints kept.
    """

    index: int
    servers: int
    workers: int
    parameter_server: ParameterServer
    port: int
    run_id: str = ""
    storage_uri: str = ""
    checkpoint_interval: float = 30.0
    checkpoint_keep: int = 2


class Refusal(Exception):
    """What a worker asks for cannot be; the text says why."""


class Server:
    """A server that listens from construction on.

    Args:
        settings: What it is told.
        log: Takes a line of JSON whenever weights are handed out; see `ShardState`.

    Raises:
        StorageError: the storage address cannot be used.
        OSError: the port is taken.
    """

    def __init__(self, settings: ServerSettings, log: Callable[[str], None] | None = None) -> None:
        self._settings = settings
        self._log = log
        self._storage = Store.open(settings.storage_uri) if settings.storage_uri else None
        self._lock = threading.Lock()
        self._state: ShardState | None = None
        self._shard = Shard(())
        self._model = ""
        self._checkpoints: ShardCheckpoints | None = None
        self._saving = threading.Lock()
        self._saved: tuple[int, ...] = ()
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._received = self._sent = 0
        dual = socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            ("", settings.port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=1024,
        )
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        """Serve until `stop` is called.

        Raises:
            StorageError: checkpoints cannot be written, and that will not pass by itself.
        """
        threading.Thread(target=self._save_regularly, name="checkpoints", daemon=True).start()
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        self._stopped.wait()
        self._listener.close()
        if self._failure is not None:
            raise self._failure
        self.save()

    def stop(self) -> None:
        """End `run`, which saves a last time. May be called from a signal handler."""
        self._stopped.set()

    def fail(self, error: Exception) -> None:
        """End `run` with an error."""
        self._failure = error
        self._stopped.set()

    def save(self) -> None:
        """Write a checkpoint if anything changed since the last one."""
        with self._saving:
            state, checkpoints = self._state, self._checkpoints
            if state is None or checkpoints is None or not state.initialized:
                return
            tree, tensors = state.snapshot()
            finished = sum(member["finished"] for member in tree["members"])
            mark = (tree["version"], tree["round"], finished)
            if mark != self._saved:
                checkpoints.save(tree, tensors)
                self._saved = mark

    def _save_regularly(self) -> None:
        while not self._stopped.wait(self._settings.checkpoint_interval):
            self.save_or_fail()

    def save_or_fail(self) -> None:
        """`save`; what cannot be saved for good ends `run`."""
        try:
            self.save()
        except StorageError as error:
            if not error.retryable:
                self.fail(error)
                return
            logger.warning("a checkpoint could not be saved, training goes on without it: %s", error)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, address = self._listener.accept()
            except OSError:
                if not self._stopped.is_set():
                    logger.exception("no more connections can be taken")
                    self._stopped.set()
                return
            serve = _Peer(self, Connection(sock), str(address[0])).serve
            threading.Thread(target=serve, name=f"peer-{address[0]}:{address[1]}", daemon=True).start()

    def join(self, header: dict[str, Any]) -> tuple[ShardState, Shard]:
        """The state that a worker means, which is made or restored when the first comes.

        Raises:
            Refusal: it belongs to another run or another model.
            StorageError: the checkpoint cannot be read.
        """
        settings = self._settings
        theirs = str(header.get("run", ""))
        if settings.run_id and theirs and theirs != settings.run_id:
            raise Refusal(f"this server is of run {settings.run_id}, the worker of run {theirs}")
        model = str(header["model"])
        with self._lock:
            if self._state is None:
                shard = Shard(tuple(Piece(0, 0, int(rows), int(columns)) for rows, columns in header["matrices"]))
                state = ShardState(shard.size, settings.workers, settings.parameter_server, self._log)
                if self._storage is not None:
                    self._checkpoints = ShardCheckpoints(
                        self._storage, settings.index, settings.run_id, model, settings.checkpoint_keep
                    )
                    saved = self._checkpoints.load()
                    if saved is not None:
                        state.restore(*saved)
                        logger.info("goes on from version %d, round %d", state.version, state.round)
                self._state, self._shard, self._model = state, shard, model
            elif model != self._model:
                raise Refusal("the worker trains another model, or the same with other settings, than those before it")
            return self._state, self._shard

    def facts(self) -> dict[str, Any]:
        """How the server stands, as JSON."""
        state = self._state
        known = state.facts() if state is not None else {"initialized": False, "workers": [], "allFinished": False}
        return known | {"server": self._settings.index, "received": self._received, "sent": self._sent}

    def finish(self, rank: int) -> None:
        """A worker is through. On record at once, since it may not be there to say so again."""
        state = self._state
        if state is not None:
            with state.changed:
                state.membership.finish(rank)
                state.changed.notify_all()
            self.save_or_fail()

    def count(self, connection: Connection) -> None:
        """Add a closed connection's bytes to the total."""
        with self._lock:
            self._received += connection.received
            self._sent += connection.sent

    @property
    def settings(self) -> ServerSettings:
        """What the server was told."""
        return self._settings

    @property
    def state(self) -> ShardState | None:
        """The shard, once a worker has come."""
        return self._state


class _Peer:
    """One connection."""

    def __init__(self, server: Server, connection: Connection, address: str) -> None:
        self._server = server
        self._connection = connection
        self._address = address
        self._rank: int | None = None
        self._size = 0
        self._incarnation = ""
        self._state: ShardState | None = None
        self._gradients: Codec = Plain(0)
        self._differences: Codec = Plain(0)
        self._limit = 0
        self._theirs: Any = None
        """The weights that the worker has, where differences are sent."""

    def serve(self) -> None:
        """Answer until the peer goes."""
        try:
            while (frame := self._connection.receive(self._limit)) is not None:
                try:
                    self._answer(frame)
                except (Refusal, ArithmeticError, ValueError, KeyError, TypeError) as error:
                    logger.warning("refused what %s asked: %s", self._name, error)
                    self._connection.send(Kind.REFUSED, {"reason": f"{type(error).__name__}: {error}"[:500]})
        except StorageError as error:
            # Its checkpoint cannot be read.
            if error.retryable:
                logger.warning("the connection of %s ended: %s", self._name, error)
            else:
                self._server.fail(error)
        except OSError as error:
            # A frame that is none ends the connection too; the peer comes back or does not.
            logger.warning("the connection of %s ended: %s", self._name, error)
        finally:
            self._leave()
            self._connection.close()
            self._server.count(self._connection)

    @property
    def _name(self) -> str:
        return self._address if self._rank is None else f"worker {self._rank}"

    def _leave(self) -> None:
        state = self._state
        if state is None or self._rank is None:
            return
        with state.changed:
            state.membership.left(self._rank, self._incarnation)
            state.changed.notify_all()

    def _answer(self, frame: Frame) -> None:
        header = frame.header
        if frame.kind is Kind.HELLO:
            self._hello(header)
        elif frame.kind is Kind.STATUS:
            self._connection.send(Kind.STATUS, self._server.facts())
        elif frame.kind is Kind.HEARTBEAT:
            self._heartbeat(header)
        elif self._state is None:
            raise Refusal("say HELLO first")
        elif frame.kind is Kind.INITIALIZE:
            self._state.initialize(Plain(self._size).decode(frame.payload))
            self._server.save_or_fail()
            self._connection.send(Kind.DONE, {})
        elif frame.kind is Kind.EXCHANGE:
            self._exchange(self._state, header, frame.payload)
        elif frame.kind is Kind.FINISH and self._rank is not None:
            self._server.finish(self._rank)
            self._connection.send(Kind.DONE, {})
        else:
            raise Refusal(f"{frame.kind.name} is nothing that a worker asks")

    def _hello(self, header: dict[str, Any]) -> None:
        state, shard = self._server.join(header)
        rank = header["rank"]
        settings = self._server.settings
        if rank is not None and not 0 <= int(rank) < settings.workers:
            raise Refusal(f"worker {rank} of a run of {settings.workers}")
        self._size = shard.size
        self._limit = 4 * shard.size + 64 + shard.size // 128  # float32, or the scales of Int8
        compression = settings.parameter_server.compression
        self._gradients = codec(compression, shard)
        # What was left out of a difference is in the next one: it needs no memory of its own.
        self._differences = codec(compression, shard, memory=False)
        self._theirs = None
        welcome: dict[str, Any] = {"initialized": state.initialized}
        if rank is not None:
            clock = header.get("clock")
            with state.changed:
                member = state.membership.join(
                    int(rank), str(header["incarnation"]), None if clock is None else int(clock), time.monotonic()
                )
                welcome |= {"clock": member.clock, "step": member.step, "round": state.round}
                state.changed.notify_all()
            self._rank, self._incarnation = int(rank), str(header["incarnation"])
            logger.info("worker %d %s at clock %d", self._rank, "joined" if clock is None else "is back", member.clock)
        self._state = state
        self._connection.send(Kind.WELCOME, welcome)

    def _heartbeat(self, header: dict[str, Any]) -> None:
        state = self._server.state
        if state is not None:
            with state.changed:
                member = state.membership.members.get(int(header["rank"]))
                if member is not None and member.incarnation == header["incarnation"]:
                    member.seen = time.monotonic()
        self._connection.send(Kind.DONE, {})

    def _exchange(self, state: ShardState, header: dict[str, Any], payload: Any) -> None:
        rank = self._rank
        if header["push"]:
            if rank is None:
                raise Refusal("only a worker pushes")
            state.push(
                Push(
                    rank=rank,
                    clock=int(header["clock"]),
                    step=int(header["step"]),
                    sequence=int(header["sequence"]),
                    learning_rate=float(header["learningRate"]),
                    weight=float(header["weight"]),
                    gradient=self._gradients.decode(payload),
                )
            )
        if not header["pull"]:
            self._connection.send(Kind.DONE, {})
            return
        if rank is None:
            weights, version = state.peek()
        else:
            weights, version = state.weights(rank, int(header["clock"]), bool(header["first"]))
        compressed = rank is not None and self._server.settings.parameter_server.compression.weights
        if not compressed or self._theirs is None:
            self._connection.send(Kind.WEIGHTS, {"version": version, "whole": True}, [buffer_of(weights)])
            self._theirs = weights if compressed else None
        else:
            buffers, sent = self._differences.encode(weights.sub_(self._theirs))
            self._theirs.add_(sent)
            self._connection.send(Kind.WEIGHTS, {"version": version, "whole": False}, buffers)


def version_log(path: str) -> Callable[[str], None]:
    """A log of versions that appends lines to a file."""
    file = open(path, "a", buffering=1)  # noqa: SIM115 - as long as the process
    return lambda line: print(json.dumps({"at": time.time()} | json.loads(line)), file=file)
