"""The agent of one worker: it does what the coordinator says, and says how its training processes are."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from headrace.reporting import Reporter
from headrace.training.agent import preflight
from headrace.training.agent.causes import Failure
from headrace.training.agent.child import Child
from headrace.training.agent.coordinator import Coordinator, Phase
from headrace.training.agent.protocol import LIMIT, Message, ProtocolError, encode, receive
from headrace.training.agent.server import Server
from headrace.training.agent.settings import Settings
from headrace.training.agent.watch import Clock
from headrace.training.errors import EXIT_CONFIGURATION, EXIT_FAILED, EXIT_INTERRUPTED

logger = logging.getLogger("headrace.training.agent")

BEAT = 0.5
"""Seconds between two looks at the processes."""
BEAT_MESSAGE = 1.0
CONNECT = 2.0
LONGEST_PAUSE = 0.5
"""Seconds between two tries to reach worker 0."""
SILENCE = 30.0
"""Seconds without a word of worker 0, which sends one every 5 s, after which the connection is made anew."""
ALONE = 900.0
"""Seconds without worker 0, and without a process that runs, after which the agent gives up."""
ALONE_DONE = 60.0
"""The same when its processes have finished: the word to leave was lost."""
LEAVING_GRACE = 20.0
"""Seconds for the processes to save and end when the pod is being ended."""
LAST_REPORT = 30.0


class Agent:
    """One worker.

    Args:
        settings: What it was told.
        command: The training process.
        environment: Of the training processes, besides what a round adds.
        reporter: Takes the job's report; only worker 0's is used.
        host: Address to listen at.
    """

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str],
        environment: Mapping[str, str],
        reporter: Callable[[], Reporter],
        host: str | None = None,
    ) -> None:
        self._settings = settings
        self._command = list(command)
        self._environment = dict(environment)
        self._reporter = reporter() if settings.index == 0 else None
        self._server = Server(settings, self._report, host) if settings.index == 0 else None
        self._children: list[Child] = []
        self._state = "idle"
        self._round = 0
        self._history: Message = {}
        self._failure: Failure | None = None
        self._down_since: float | None = None
        self._leaving = False
        self._writer: asyncio.StreamWriter | None = None
        self._away_since = time.monotonic()
        self._clock = Clock(time.monotonic(), BEAT)
        self._busy = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_report: dict[str, Any] = {}
        self._reported: dict[str, Any] = {}
        self._exit: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def run(self) -> int:
        """Take part until the job ends; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        server = asyncio.create_task(self._server.run()) if self._server else None
        if server is not None:
            server.add_done_callback(self._on_server_end)
        probes = None
        if self._settings.preflight is not None:
            probes = await preflight.serve(self._settings.token, self._settings.address)
        others = [asyncio.create_task(work()) for work in (self._keep_connected, self._look_after)]
        code, message = await self._exit
        for task in others:
            task.cancel()
        if probes is not None:
            probes.close()
        async with self._busy:
            await asyncio.gather(*(child.stop(0.0) for child in self._children))
        if self._writer is not None:
            self._writer.close()
        if server is not None and not self._leaving:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(server), 5.0)
        if self._reporter is not None:
            await self._reporter.aclose(LAST_REPORT if code == 0 else 2.0)
        if code:
            sys.stdout.flush()
            print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the pod's termination message
        return code

    # Signals and the end

    def _on_signal(self) -> None:
        if self._leaving:
            return
        self._leaving = True
        logger.info("told to stop: the training processes are given %g s to save", LEAVING_GRACE)
        self._say({"type": "leaving"})
        self._spawn(self._leave())

    async def _leave(self) -> None:
        stopping = asyncio.create_task(self._stop_children(LEAVING_GRACE, dump=False))
        if self._server is not None:
            await asyncio.sleep(0.5)  # for the word to get to the others
            self._server.retire()
        await stopping
        self._end(EXIT_INTERRUPTED, "told to stop before the work was done")

    def _end(self, code: int, message: str) -> None:
        if not self._exit.done():
            self._exit.set_result((code, message))

    def _on_server_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(EXIT_FAILED, f"the agent of worker 0 cannot listen at port {self._settings.port}: {error!r}")

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the agent failed", exc_info=error)
            self._end(EXIT_FAILED, f"the agent failed: {error!r}")

    # The connection to worker 0

    async def _keep_connected(self) -> None:
        pause = 0.05
        while True:
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection(self._settings.coordinator, self._settings.port, limit=LIMIT), CONNECT
                )
            except (OSError, TimeoutError):
                self._give_up_when_alone()
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)
                continue
            pause = 0.05
            self._writer = writer
            self._say(self._hello())
            try:
                while (message := await asyncio.wait_for(receive(reader), SILENCE)) is not None:
                    self._told(message)
            except (OSError, TimeoutError, ProtocolError) as error:
                logger.info("the connection to worker 0 broke: %r", error)
            self._writer = None
            writer.close()
            self._away_since = time.monotonic()
            await asyncio.sleep(pause)

    def _hello(self) -> Message:
        hello: Message = {
            "type": "hello",
            "token": self._settings.token,
            "index": self._settings.index,
            "workers": self._settings.workers,
            "incarnation": self._settings.incarnation,
            "address": self._settings.address,
            "zone": self._settings.zone,
            "node": self._settings.node,
            "state": self._state,
            "round": self._round,
            "leaving": self._leaving,
            "history": self._history,
        }
        if self._round and self._state != "done":
            hello["down"] = time.monotonic() - (self._down_since or self._away_since)
        if self._failure is not None and self._state == "failed":
            hello["failure"] = self._failure.message_form(time.monotonic())
        return hello

    def _give_up_when_alone(self) -> None:
        away = time.monotonic() - self._away_since
        if self._state == "done" and away > ALONE_DONE:
            self._end(0, "")
        elif self._state != "running" and away > ALONE:
            self._end(EXIT_FAILED, f"worker 0 could not be reached for {away:.0f} s at {self._settings.coordinator}")

    def _say(self, message: Message) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    def _told(self, message: Message) -> None:
        kind = message["type"]
        if kind == "start" and not self._leaving:
            self._spawn(self._start(message))
        elif kind == "probe":
            self._spawn(self._probe(str(message.get("address", ""))))
        elif kind == "stop":
            self._spawn(self._stop(message))
        elif kind == "finish":
            self._end(0, "")
        elif kind == "end":
            self._end(int(message.get("code", EXIT_FAILED)), str(message.get("message", "")))
        elif kind == "leave":
            self._end(EXIT_INTERRUPTED, "this worker was given up and replaced")

    async def _probe(self, address: str) -> None:
        """Measure the link to the worker whose rank comes after this one's."""
        found = await preflight.measure(self._settings.token, address)
        if "problem" in found:
            logger.warning("the link to the next worker is dead: %s", found["problem"])
        else:
            logger.info(
                "the link to %s: %.3g ms, %s", address, 1e3 * found["roundTrip"], preflight.rate(found["bandwidth"])
            )
        self._say({"type": "probed", **found})

    # The training processes

    async def _start(self, message: Message) -> None:
        if self._children:
            await self._stop_children(0.0, dump=False)
        async with self._busy:
            self._round = int(message["round"])
            self._history = {name: message[name] for name in ("round", "restarts", "recent", "hangs")}
            self._failure, self._down_since = None, None
            world, first = int(message["world"]), int(message["rank"])
            logger.info(
                "round %d: ranks %d to %d of %d", self._round, first, first + self._settings.processes - 1, world
            )
            for local in range(self._settings.processes):
                variables = {
                    "RANK": first + local,
                    "LOCAL_RANK": local,
                    "LOCAL_WORLD_SIZE": self._settings.processes,
                    "WORLD_SIZE": world,
                    "GROUP_RANK": message["position"],
                    "GROUP_WORLD_SIZE": message["workers"],
                    "MASTER_ADDR": message["master"],
                    "MASTER_PORT": self._settings.master_port,
                    "HEADRACE_ATTEMPT": self._round,
                }
                told = self._environment | {name: str(value) for name, value in variables.items()}
                reports = self._open_reports() if first + local == 0 and self._reporter is not None else None
                try:
                    child = await Child.start(self._command, told, self._settings.index, first + local, reports)
                except OSError as error:
                    self._end(EXIT_CONFIGURATION, f"{self._command[0]} cannot be started: {error}")
                    return
                finally:
                    if reports is not None:
                        os.close(reports)
                self._children.append(child)
            self._state = "running"
            self._spawn(self._wait(self._round, list(self._children)))

    async def _wait(self, number: int, children: list[Child]) -> None:
        """Tell how the processes of a round end: the first failure at once, success when all have ended."""
        for ended in asyncio.as_completed([child.wait() for child in children]):
            failure = await ended
            if failure is not None and number == self._round and self._state == "running":
                self._state, self._failure, self._down_since = "failed", failure, time.monotonic()
                logger.warning("rank %d ended with exit code %d", failure.rank, failure.code)
                self._say({"type": "failed", "round": number, "failure": failure.message_form(time.monotonic())})
        if number == self._round and self._state == "running":
            self._state = "done"
            self._say({"type": "done", "round": number})

    async def _stop(self, message: Message) -> None:
        await self._stop_children(float(message.get("grace", 0)), dump=bool(message.get("dump")))
        self._say({"type": "stopped", "round": self._round})

    async def _stop_children(self, grace: float, *, dump: bool) -> None:
        async with self._busy:
            self._state = "stopping"
            self._down_since = self._down_since or time.monotonic()
            await asyncio.gather(*(child.stop(grace, dump=dump) for child in self._children))
            for child in self._children:
                child.close()
            self._children = []
            self._state = "idle"

    async def _look_after(self) -> None:
        told = 0.0
        while True:
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            self._clock.awake(now)
            if not self._busy.locked():  # a process that is just being started is in no list
                _reap({child.process.pid for child in self._children})
            if self._state not in ("running", "done") or now - told < BEAT_MESSAGE - BEAT / 2:
                continue
            told = now
            hangs = int(self._history.get("hangs", 0))
            beats = [child.beat(self._clock, self._settings.hang_timeout, hangs) for child in self._children]
            self._say({"type": "beats", "round": self._round, "beats": beats})

    # The report

    def _open_reports(self) -> int:
        """A pipe by which rank 0 reports; the end to hand on."""
        reader, writer = os.pipe()
        self._spawn(self._read_reports(reader))
        return writer

    async def _read_reports(self, descriptor: int) -> None:
        stream = asyncio.StreamReader(limit=LIMIT)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, "rb")
        )
        number = self._round
        try:
            while line := await stream.readline():
                report = json.loads(line)
                if isinstance(report, dict) and number == self._round:
                    self._last_report = report
                    self._write_report()
        except ValueError as error:
            logger.warning("rank 0's report is not understood: %s", error)
        finally:
            transport.close()

    def _report(self, coordinator: Coordinator) -> None:
        facts: dict[str, Any] = {
            "state": coordinator.phase.value,
            "round": coordinator.round,
            "restarts": coordinator.restarts,
            "recent": coordinator.recent[-self._settings.max_restarts :] if self._settings.max_restarts else [],
            "workers": len(coordinator.order),
        }
        if coordinator.order != sorted(coordinator.order) or len(coordinator.order) != self._settings.workers:
            facts["order"] = coordinator.order[:64]
        if coordinator.phase is Phase.GATHERING and coordinator.round >= self._settings.attempt:
            facts["missing"] = coordinator.missing()[:16]
        if coordinator.stragglers:
            facts["stragglers"] = {str(index): times for index, times in sorted(coordinator.stragglers.items())[:16]}
        if coordinator.links:
            facts["links"] = [
                [link.source.index, link.target.index, round(1e3 * link.round_trip, 3), round(link.bandwidth)]
                for link in coordinator.links[:64]
            ]
        if coordinator.slow_links:
            facts["slowLinks"] = coordinator.slow_links[:800]
        if coordinator.dead_links:
            facts["reason"], facts["message"] = "LinkDead", coordinator.dead_links[:600]
        elif coordinator.last is not None:
            facts["reason"], facts["message"] = coordinator.last.reason, coordinator.last.message[:600]
        if coordinator.recovered is not None:
            facts["recovered"] = coordinator.recovered
        if facts != self._reported:
            if facts["round"] != self._reported.get("round"):
                self._last_report.pop("resumedFromStep", None)
            self._reported = facts
            self._write_report()

    def _write_report(self) -> None:
        attempt = max(self._settings.attempt, int(self._reported.get("round", 0)))
        if self._reporter is not None:
            self._reporter.report({**self._last_report, "attempt": attempt, "group": self._reported})


def _reap(own: set[int]) -> None:
    """Process 1 of a container inherits what its children leave behind; asyncio waits for the children themselves."""
    if os.getpid() != 1:
        return
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in own:
            return
        with suppress(ChildProcessError):
            os.waitpid(ended.si_pid, os.WNOHANG)
