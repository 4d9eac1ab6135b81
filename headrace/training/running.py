"""The session of a training script (`Run`): everything it needs from the platform, and nothing that it must learn.

    import headrace.training

    with headrace.training.session() as run:
        model = DistributedDataParallel(Net().to(run.device))
        optimizer = torch.optim.Adam(model.parameters())
        state = run.checkpoints.restore({"model": model, "optimizer": optimizer})
        for step in range(state["step"] if state else 0, 1000):
            loss = ...
            run.report(step=step + 1, steps=1000, loss=loss, samples=len(batch))
            if run.checkpoints.due():  # the same on all workers
                run.checkpoints.save(step + 1, {"model": model, "optimizer": optimizer})

The same script runs in a notebook: one process, no reports, and checkpoints where a storage URI is given.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.reporting import Reporter, pod_reporter
from headrace.storage import StorageError, StorageFull, Store, patiently
from headrace.training.agent.link import Link
from headrace.training.checkpoint import Checkpoints
from headrace.training.checkpoint_folder import CheckpointFolder, Owner
from headrace.training.environment import Environment
from headrace.training.errors import (
    EXIT_CONFIGURATION,
    EXIT_GATE_NOT_MET,
    ConfigurationError,
    GateNotMet,
    Interrupted,
)
from headrace.training.interruption import GRACE, Interruption
from headrace.training.observer import Observer
from headrace.training.parquet import ParquetRows
from headrace.training.process_group import Group, broadcast_bytes, join, leave
from headrace.training.profile import Profiler
from headrace.training.progress import Report
from headrace.training.stream import Stream

if TYPE_CHECKING:
    from headrace.training.parameter_server.client import Client

logger = logging.getLogger(__name__)

T = TypeVar("T")

FINAL_REPORT_TIMEOUT = 30.0
"""Seconds for the last report of a finished run, which carries its metrics and the model's URI."""
FAILED_REPORT_TIMEOUT = 2.0
"""Seconds for the last report of a run that failed."""
REPORT_RESOLUTION = 0.5
"""Seconds within which reports of a run are merged: reading a loss from a GPU makes the CPU wait for it."""
JOINING_GRACE = 0.5
"""Seconds from SIGTERM to the end of the process while it waits for the other workers: there is nothing to save."""
RUN_FILE = "run.json"


class Run:
    """One worker of a run.

    Attributes:
        environment: What the worker was told.
        group: The device and backend of this process.
        device: The `torch.device` of this process.
        backend: Collective library, gloo or nccl.
        storage: Folder of the run; None where none is given.
        checkpoints: Saves and restores models and optimizers.
        observer: What is measured of this worker.
        profiler: Profiles steps when somebody asks.
        weighed: Whether a metric was compared with spec.evaluation.
    """

    def __init__(
        self,
        environment: Environment,
        group: Group,
        storage: Store | None,
        reporter: Reporter | None,
        interruption: Interruption,
        session: str = "",
        link: Link | None = None,
    ) -> None:
        self.environment = environment
        self._link = link or Link({})
        self._steps = 0
        self._worked = -REPORT_RESOLUTION
        self.group = group
        self.device = group.device
        self.backend = group.backend
        self.storage = storage
        self._reporter = reporter
        self._interruption = interruption
        self._report = Report(environment.attempt, group.backend)
        self._started = time.time()
        self.profiler = Profiler(environment.rank, environment.attempt, storage)
        self.weighed = False
        self.observer = Observer(environment, group.device, storage, self._report, lambda: self.checkpoints)
        self._reported = -REPORT_RESOLUTION
        self._clients: list[Client] = []
        folder = None
        served = environment.topology.type == "ParameterServer"
        if served:
            # The servers save the model; each worker for itself has nothing to save.
            environment = replace(environment, rank=0, world_size=1)
        if self.storage is not None and not served:
            owner = Owner(environment.run_id, attempt=environment.attempt, session=session)
            folder = CheckpointFolder(
                self.storage.folder("checkpoints"), owner, environment.checkpoint_keep, environment.checkpoint.best
            )
        self.checkpoints = Checkpoints(
            folder,
            environment,
            group,
            lambda: interruption.requested,
            self._begin,
            lambda: self.observer.goodput.useful,
        )

    @property
    def rank(self) -> int:
        """This process among all, 0 to world_size - 1."""
        return self.environment.rank

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.environment.world_size

    @property
    def interrupted(self) -> bool:
        """Whether this worker was told to stop (SIGTERM)."""
        return self._interruption.requested

    @property
    def must_stop(self) -> bool:
        """Whether this worker was told to stop and has nothing more to save; `report` raises Interrupted then."""
        return self.interrupted and self.checkpoints.may_leave

    def report(
        self,
        *,
        epoch: int | None = None,
        epochs: int | None = None,
        step: int | None = None,
        steps: int | None = None,
        loss: Any = None,
        samples: float = 0,
        metrics: Mapping[str, float] | None = None,
        model_uri: str | None = None,
    ) -> None:
        """Say how far training is; cheap, never waits, and what is not given keeps its value.

        Args:
            epoch: Epochs finished.
            epochs: Epochs in all.
            step: Optimiser steps finished.
            steps: Optimiser steps in all.
            loss: Training loss; a number or a tensor with one element.
            samples: Rows that this process worked on since its previous report.
            metrics: Final metrics by name.
            model_uri: Where the model was exported to.

        Raises:
            Interrupted: the worker was told to stop. It is a SystemExit, so a script needs to do nothing about it.
            GateNotMet: a metric misses spec.evaluation; in a job the run fails with it.
        """
        self._steps = steps or self._steps
        self.beat(step)
        figures = {"epoch": epoch, "epochs": epochs, "step": step, "steps": steps}
        self._report.update(figures, loss, samples * self.world_size, metrics, model_uri)
        if step is not None:
            self.observer.step(step)
            self.profiler.step(step)
            self._tell_own_work()
        if self._reporter is not None and time.monotonic() - self._reported >= REPORT_RESOLUTION:
            self.flush()
        if metrics:
            self._weigh(metrics)
        if self.must_stop:
            raise Interrupted

    def _tell_own_work(self) -> None:
        now = time.monotonic()
        if now - self._worked >= REPORT_RESOLUTION:
            self._worked = now
            own = self.observer.clock.own_work()
            if own is not None:
                self._link.computed(own)

    def beat(self, step: int | None = None) -> None:
        """Say that this worker is alive and has finished `step`, without a report; costs a microsecond.

        A worker from which no step comes for long is held for hung (`spec.restartPolicy.hangTimeout`). `report` says
        it too.
        """
        self._link.beat(step, finishing=step is not None and 0 < self._steps <= step)

    def flush(self) -> None:
        """Hand what was last said to the reporter now."""
        if self._reporter is not None:
            self._reported = time.monotonic()
            self._reporter.report(self._report.content() | self.observer.content())

    def parameter_server(self, model: Any, learning_rate: float, fingerprint: str = "") -> Client:
        """Take part in a run of topology ParameterServer; see `headrace.training.parameter_server.client`.

        Args:
            model: The torch module that is trained.
            learning_rate: Step size of the servers' optimizer.
            fingerprint: Of the settings that the weights depend on: a checkpoint with another one is not used.

        Raises:
            ConfigurationError: the run has no servers, or they refuse this worker.
            ServerLost: a server is not there.
        """
        from headrace.training.parameter_server.client import join

        client = join(self.environment, model, learning_rate, fingerprint, lambda: self.interrupted)
        self._clients.append(client)
        self._begin(client.step or None)
        return client

    def close(self) -> None:
        """Leave the servers, where there are some."""
        for client in self._clients:
            client.close()

    def publish(
        self,
        files: Mapping[str, bytes],
        metrics: Mapping[str, float] | None = None,
        parameters: Mapping[str, Any] | None = None,
        **details: Any,
    ) -> str | None:
        """Write the trained model with a card to `model/`, and register it where spec.registry is set.

        A model that misses spec.evaluation is not written. On other workers than rank 0 it does nothing.

        Args:
            files: Contents by name; the last one is the model itself (`model.onnx`), and is written last.
            metrics: Final metrics by name.
            parameters: Settings of the training.
            **details: What else `model/card.json` says, such as `data`.

        Returns:
            URI of the model; None without storage, and on other workers.

        Raises:
            GateNotMet: a metric misses spec.evaluation.
            StorageError: it could not be written.
        """
        if self.rank != 0:
            return None
        self.report(metrics=metrics)
        if self.storage is None:
            return None
        from headrace.training.output import publish

        everything = {**self._report.metrics, **(metrics or {})}
        uri, registered = publish(
            self.environment,
            self.storage,
            files,
            everything,
            parameters or {},
            details,
            self._started,
            self.observer.curve,
        )
        self._report.registered = registered
        self.report(model_uri=uri)
        return uri

    def _weigh(self, metrics: Mapping[str, float]) -> None:
        """Compare metrics with what spec.evaluation asks for."""
        from headrace.training.output import check

        try:
            self.weighed = check(self.environment.evaluation, metrics) or self.weighed
        except GateNotMet:
            self.weighed = True
            self.flush()
            raise

    def require_weighing(self) -> None:
        """Raise ConfigurationError where spec.evaluation asks for a metric that was not reported."""
        from headrace.training.output import unknown_metric

        gate = self.environment.evaluation
        if gate is not None and self.rank == 0 and not self.weighed:
            raise unknown_metric(gate, self._report.metrics)

    def data(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with the time that each takes to come counted as waiting for data."""
        return self.observer.clock.waiting(batches)

    def dataset(
        self,
        uri: str,
        batch_size: int,
        columns: Sequence[str] | None = None,
        *,
        seed: int = 0,
        epochs: int | None = None,
        shuffle: bool = True,
        prefetch: int = 4,
    ) -> Stream:
        """This worker's batches of the Parquet file or folder at `uri`, read ahead; see `headrace.training.stream`.

        Args:
            uri: In storage.
            batch_size: Rows of one step over all workers together.
            columns: What to read; None for all columns.
            seed: Of the order of rows.
            epochs: Passes over the rows; None goes on for ever.
            shuffle: Whether the order is random.
            prefetch: Row groups that are read ahead.

        Raises:
            ConfigurationError: it is not Parquet, or has no rows.
            StorageError: it cannot be read.
        """
        return Stream(
            patiently(lambda: ParquetRows.open(uri, "the data set")),
            batch_size,
            columns,
            rank=self.rank,
            world_size=self.world_size,
            seed=seed,
            epochs=epochs,
            shuffle=shuffle,
            prefetch=prefetch,
        )

    def device_mesh(self) -> Any:
        """The processes as topology.sharding and topology.tensorParallel group them. Collective.

        Returns:
            A torch DeviceMesh with the dimensions replicate, shard and tensor, in which neighbours share a node, then
            a zone: `fully_shard(layer, mesh=run.device_mesh()["replicate", "shard"])`.

        Raises:
            ConfigurationError: the processes are no multiple of tensorParallel.
        """
        from torch.distributed.device_mesh import DeviceMesh

        from headrace.training.strategy.mesh import device_mesh

        told = self.environment
        mesh: DeviceMesh = device_mesh(told.topology, self.device, told.world_size, told.place)
        return mesh

    def watch(self, model: Any) -> None:
        """Show how long steps wait for other workers' gradients, as this DistributedDataParallel measures it."""
        self.observer.clock.watch(model)

    def _begin(self, step: int | None, useful: float | None = None) -> None:
        self.beat(step or 0)
        self._report.resumed_from_step = step
        self._report.restart_clock()
        self.observer.begin(useful)


@contextmanager
def session(
    storage_uri: str | None = None,
    sink: Callable[[str], None] | None = None,
    environment: Environment | None = None,
) -> Iterator[Run]:
    """Join the run that this process belongs to, and leave it at the end.

    Args:
        storage_uri: Folder of the run; by default HEADRACE_STORAGE_URI.
        sink: Takes each report as a line of JSON where the process is not in a pod; by default nobody does.
        environment: What the worker is told; by default read from the process's environment.

    Raises:
        ConfigurationError, StorageError: the run cannot work. In a job the process ends with exit code 78 and the
            message as its last line instead.
        Interrupted: SIGTERM came and the script did not catch it.
    """
    told = environment or Environment.read()
    if storage_uri:
        told = replace(told, storage_uri=storage_uri.rstrip("/"))
    arranged = bool(told.job)
    if arranged and not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    try:
        with ExitStack() as stack:
            interruption = Interruption(JOINING_GRACE)
            if arranged or told.master:
                stack.enter_context(interruption)
            link = Link()
            storage = _announce(told)
            group = join(told)
            interruption.grace = GRACE
            if told.world_size == 1:
                # With peers a failed run does not take the group down: that could wait for those that are gone.
                stack.callback(leave)
            reporter = _reporter(sink, link) if told.rank == 0 else None
            run = Run(told, group, storage, reporter, interruption, _session_id(told, group), link)
            stack.callback(run.close)
            stack.enter_context(run.profiler)
            try:
                yield run
                run.checkpoints.wait()
                run.require_weighing()
                run.flush()
            except BaseException as error:
                run.checkpoints.settle()
                run.observer.close(FAILED_REPORT_TIMEOUT)
                if reporter is not None:
                    reporter.close(FAILED_REPORT_TIMEOUT)
                if run.interrupted and isinstance(error, RuntimeError):
                    # The others were told to stop too, and their leaving broke a collective here.
                    raise Interrupted from error
                raise
            run.observer.close(FINAL_REPORT_TIMEOUT)
            if reporter is not None and not reporter.close(FINAL_REPORT_TIMEOUT):
                logger.warning("the last report could not be sent")
            if run.interrupted:
                raise Interrupted
            leave()
    except GateNotMet as error:
        if not arranged:
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the termination message
        raise SystemExit(EXIT_GATE_NOT_MET) from error
    except (ConfigurationError, StorageError) as error:
        if not arranged or (isinstance(error, StorageError) and error.retryable):
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the termination message
        raise SystemExit(EXIT_CONFIGURATION) from error


def _reporter(sink: Callable[[str], None] | None, link: Link) -> Reporter:
    """Reports go to the agent, which adds what it knows, where there is one; it keeps the pace."""
    return Reporter(link.sink, min_interval=0.2) if link.sink is not None else pod_reporter(sink)


def _session_id(told: Environment, group: Group) -> str:
    """Differs from one session to the next, and is the same on all workers; a lone one needs none."""
    if told.world_size == 1:
        return ""
    return broadcast_bytes(secrets.token_hex(4).encode() if told.rank == 0 else None, group.device).decode()


def _announce(told: Environment) -> Store | None:
    """The storage of the run. Rank 0 writes who runs there: a folder that cannot be written is known before training.

    Raises:
        StorageError: it cannot be written.
    """
    if not told.storage_uri:
        return None
    storage = Store.open(told.storage_uri)
    if told.rank == 0:
        facts = {"job": told.job, "runId": told.run_id, "attempt": told.attempt, "workers": told.world_size}

        def write() -> None:
            try:
                storage.write_bytes(RUN_FILE, json.dumps(facts).encode())
            except StorageFull as error:  # what is there can be gone on from
                logger.warning("nothing can be saved at present: %s", error)

        patiently(write)
    return storage
