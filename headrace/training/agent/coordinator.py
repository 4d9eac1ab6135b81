"""The state machine of rounds: what the agents say comes in, what they are told goes out. No I/O, no clock.

    Gathering   waiting for everybody (an elastic job: for enough); then a round starts
    Probing     everybody is there, and links that were not measured yet are (topology.preflight)
    Running     the training processes of a round run
    Stopping    they are being ended everywhere, and why is being found out
    Ended       everybody finished, or nothing more can be done

A broken connection alone ends no round: the agent has GRACE to come back, and its processes go on meanwhile. A pod that
is gone breaks its peers' collectives, which says so at once. A coordinator that is new (its pod was lost) learns the
number of the last round and the counted restarts from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from statistics import median

from headrace.training.agent.causes import EXIT_HUNG, Cause, Failure, first_cause
from headrace.training.agent.members import Member, Tell, links, place_of, ring
from headrace.training.agent.preflight import Link, Place, dead, slow
from headrace.training.agent.protocol import Message
from headrace.training.agent.settings import Settings
from headrace.training.errors import EXIT_LINK

GRACE = 3.0
"""Seconds for an agent to come back after its connection broke."""
SETTLING = 0.3
"""Seconds after the first failure of a round in which other failures may turn out to be the cause."""
SILENT = 10.0
"""Seconds without a word after which an agent counts as not answering, where something is wrong anyway."""
LONGEST_STOP = 25.0
"""Seconds for an agent to end its processes; then it is given up and waited for anew."""
ELASTIC_WAIT = 5.0
"""Seconds that an elastic job waits for further workers once it has enough and nobody came or went."""
FIRST_WAIT = 30.0
"""The same before its first round, while pods are being made."""
CONFIRM_HANG = 1.0
"""Seconds between the first sign of a hang and the verdict, so that everybody's newest word is in."""
LONGEST_BACKOFF = 60.0
SLOW = 1.5
"""Own work of a step, as a multiple of the median, from which on a worker is a straggler."""
SLOW_FOR = 20.0
"""Seconds that it has to be slow."""
JOIN_AFTER = 15.0
"""Seconds that a round of an elastic job has at least before it is ended to take a newcomer in."""


PROBE_TIME = 30.0
"""Seconds for all agents to measure their links."""
PROBE_AGAIN = 5.0
"""Seconds before dead links are measured again."""


class Phase(Enum):
    """Where the group stands."""

    GATHERING = "Gathering"
    PROBING = "Probing"
    RUNNING = "Running"
    STOPPING = "Stopping"
    ENDED = "Ended"


class Coordinator:
    """Worker 0's side of the protocol.

    Args:
        settings: Of worker 0's agent.
        now: The time, monotonic, in seconds; as in all methods.
        epoch: The same moment in seconds since 1970.
    """

    def __init__(self, settings: Settings, now: float, epoch: float) -> None:
        self._settings = settings
        self._wanted = settings.workers
        """Workers asked for; the youngest pod knows best, since an elastic job may be scaled."""
        self._epoch = epoch - now
        self.phase = Phase.GATHERING
        self.members: dict[int, Member] = {}
        self.round = settings.attempt - 1
        self.restarts = settings.restarts
        self.recent = list(settings.recent)
        self.hangs = 0
        self.last: Cause | None = None
        self.order: list[int] = []
        self.recovered: float | None = None
        """Seconds from the end of the previous round's steps to the first step of this one, once it came."""
        self.stragglers: dict[int, float] = {}
        """Workers that hold the others up, and how many times the median their own work of a step takes."""
        self._slow_since: dict[int, float] = {}
        self.links: list[Link] = []
        """The ring as it was measured."""
        self.dead_links = ""
        """Those that carry nothing, in words, while no round begins for them."""
        self.slow_links = ""
        """Those of them that are slow, in words."""
        self._probes: dict[int, Link | None] = {}
        self._measured: set[tuple[str, str]] = set()
        """Incarnations at the ends of links that were measured and are not dead."""
        self._dead_since: float | None = None
        self._failures: list[Failure] = []
        self._pending: Cause | None = None
        self._since = now
        self._not_before = now
        self._fresh = True
        self._hang_since: float | None = None
        self._settled = 0.0
        self._failed_at: float | None = None
        self._superseded: set[str] = set()
        self._out: list[Tell] = []

    # What agents say

    def joined(self, index: int, hello: Message, now: float) -> list[Tell]:
        """An agent has connected, for the first time or again."""
        incarnation = str(hello.get("incarnation", ""))
        before = self.members.get(index)
        if incarnation in self._superseded or not 0 <= index < self._settings.max_workers:
            return [Tell(index, {"type": "leave"}, close=True)]
        if before is not None and before.incarnation != incarnation:
            self._superseded.add(before.incarnation)
            self._lost(before, now)
            before = None
        state = str(hello.get("state", "idle"))
        down = hello.get("down")
        if before is None and isinstance(down, int | float) and self.phase is Phase.GATHERING:
            self._mark_end(now - down)
            self.last = self.last or Cause("WorkerLost", f"worker {self._settings.index} is gone")
        member = Member(
            index=index,
            incarnation=incarnation,
            address=str(hello.get("address", "")),
            zone=str(hello.get("zone", "")),
            node=str(hello.get("node", "")),
            state=state,
            heard=now,
            leaving=bool(hello.get("leaving")),
        )
        self.members[index] = member
        if before is None:
            self._since = now
            wanted = hello.get("workers")
            if self._settings.elastic and isinstance(wanted, int) and index != self._settings.index:
                self._wanted = min(max(wanted, index + 1), self._settings.max_workers)
        self._learn(hello)
        same_round = self.phase is Phase.RUNNING and hello.get("round") == self.round and before is not None
        if state != "idle" and not same_round and self.phase is not Phase.STOPPING:
            # It runs a round that this coordinator knows nothing of, or that is over.
            self._tell(index, {"type": "stop", "round": hello.get("round"), "grace": 0.0, "dump": False})
            member.state = "stopping"
        elif self.phase is Phase.STOPPING and state != "idle":
            self._tell(index, {"type": "stop", "round": hello.get("round"), "grace": 0.0, "dump": False})
            member.state = "stopping"
        elif same_round and state == "idle":
            self._lost(member, now)
        if same_round and state == "failed" and isinstance(hello.get("failure"), dict):
            self._failed(Failure.parse(index, hello["failure"], now), now)
        return self._step(now)

    def disconnected(self, index: int, incarnation: str, now: float) -> list[Tell]:
        """The connection of an agent broke."""
        member = self.members.get(index)
        if member is None or member.incarnation != incarnation or not member.connected:
            return []
        member.connected, member.lost_at = False, now
        if member.leaving or self.phase in (Phase.GATHERING, Phase.PROBING):
            self._lost(member, now)
        return self._step(now)

    def said(self, index: int, message: Message, now: float) -> list[Tell]:
        """A message of a connected agent."""
        member = self.members.get(index)
        if member is None:
            return []
        member.heard = now
        kind, current = message["type"], message.get("round") == self.round
        if kind == "beats" and current:
            beats = message.get("beats")
            member.beats = [beat for beat in beats if isinstance(beat, dict)] if isinstance(beats, list) else []
        elif kind == "failed" and current:
            member.state = "failed"
            self._failed(Failure.parse(index, message.get("failure"), now), now)
        elif kind == "done" and current:
            member.state = "done"
        elif kind == "stopped" and (current or member.state != "running"):
            # One that was told to stop twice, by a lost coordinator and by this one, says so twice: the second word
            # may come when the next round runs already.
            member.state = "idle"
        elif kind == "probed" and self.phase is Phase.PROBING and index in self._probes:
            self._probes[index] = Link.parse(place_of(member), self._next(index), message)
        elif kind == "leaving":
            member.leaving = True
            if self.phase is Phase.RUNNING:
                cause = Cause("WorkerInterrupted", f"worker {index} was told to stop: its pod or node goes away")
                self._stop(cause, now, grace=True)
        return self._step(now)

    def tick(self, now: float) -> list[Tell]:
        """Time has passed; called about twice a second."""
        for member in list(self.members.values()):
            if not member.connected and now - member.lost_at >= GRACE:
                self._lost(member, now)
        if self.phase is Phase.RUNNING:
            self._look_for_recovery(now)
            self._look_for_stragglers(now)
            self._look_for_hang(now)
            if self._settings.elastic and now - self._since >= JOIN_AFTER and self._newcomers():
                who = ", ".join(str(member.index) for member in self._newcomers())
                self._stop(Cause("WorkersJoined", f"worker {who} joins"), now, grace=True)
        if self.phase is Phase.STOPPING and now - self._since >= LONGEST_STOP:
            for member in list(self.members.values()):
                if member.state != "idle":
                    self._out.append(Tell(member.index, {"type": "leave"}, close=True))
                    self._superseded.add(member.incarnation)
                    self._lost(member, now)
        return self._step(now)

    def missing(self) -> list[int]:
        """Workers that are waited for."""
        return [index for index in range(self._wanted) if index not in self.members]

    def history(self) -> Message:
        """What survives the loss of worker 0's pod with every other agent."""
        return {"round": self.round, "restarts": self.restarts, "recent": self.recent, "hangs": self.hangs}

    # How the group goes on

    def _step(self, now: float) -> list[Tell]:
        if self.phase is Phase.RUNNING:
            if self._pending is None and self._failures and now >= self._settled:
                self._stop(None, now)
            elif all(self._state(index) == "done" for index in self.order):
                self.phase = Phase.ENDED
                self._broadcast({"type": "finish"})
        if self.phase is Phase.STOPPING:
            # Who is away while all is ended anyway gets no grace; it has to come back before the next round.
            for member in [member for member in self.members.values() if not member.connected]:
                self._lost(member, now)
            if all(member.state == "idle" for member in self.members.values()):
                self._decide(now)
        if self.phase is Phase.PROBING:
            self._look_at_probes(now)
        if self.phase is Phase.GATHERING and self._complete(now):
            members = ring(self._ready())
            if self._settings.preflight is not None and not self._is_measured(members):
                self._probe(members, now)
            else:
                self._start(members, now)
        out, self._out = self._out, []
        return out

    def _complete(self, now: float) -> bool:
        ready = self._ready()
        if now < self._not_before or any(member.state != "idle" for member in ready):
            return False
        if 0 not in {member.index for member in ready}:
            return False  # Cannot be: this is its own agent.
        if len(ready) >= self._wanted:
            return True
        wait = FIRST_WAIT if self._fresh else ELASTIC_WAIT
        enough = len(ready) >= self._settings.min_workers
        return self._settings.elastic and enough and now - self._since >= wait

    def _ready(self) -> list[Member]:
        return [member for member in self.members.values() if member.connected and not member.leaving]

    # Links

    def _is_measured(self, members: Sequence[Member]) -> bool:
        """Every link of the ring is known to carry something; a new pod's are not."""
        return len(members) == 1 or self._measured >= {
            (member.incarnation, after.incarnation) for member, after in links(members)
        }

    def _probe(self, members: Sequence[Member], now: float) -> None:
        self.phase, self._since = Phase.PROBING, now
        self.order = [member.index for member in members]
        self._probes = dict.fromkeys(self.order)
        for member, after in links(members):
            self._tell(member.index, {"type": "probe", "address": after.address})

    def _next(self, index: int) -> Place:
        after = self.order[(self.order.index(index) + 1) % len(self.order)]
        member = self.members.get(after)
        return place_of(member) if member is not None else Place(after, "", "")

    def _look_at_probes(self, now: float) -> None:
        if {member.index for member in self._ready()} != set(self.order):
            self.phase, self._since = Phase.GATHERING, now  # somebody left or came
            return
        if any(link is None for link in self._probes.values()):
            if now - self._since < PROBE_TIME:
                return
            silent = "its agent did not measure it in time"
            for index in [index for index, link in self._probes.items() if link is None]:
                self._probes[index] = Link(place_of(self.members[index]), self._next(index), problem=silent)
        self.links = [link for link in self._probes.values() if link is not None]
        self._judge(now)

    def _judge(self, now: float) -> None:
        """Begin the round, or not yet, or never."""
        settings = self._settings.preflight
        assert settings is not None
        self.slow_links = slow(self.links, settings)
        self.dead_links = dead(self.links)
        if self.dead_links:
            self._dead_since = now if self._dead_since is None else self._dead_since
            if now - self._dead_since >= settings.timeout:
                self._end(Cause("LinkDead", self.dead_links, code=EXIT_LINK))
                return
            self.phase, self._since, self._not_before = Phase.GATHERING, now, now + PROBE_AGAIN
            return
        self._dead_since = None
        if self.slow_links and settings.fail:
            self._end(Cause("LinkSlow", self.slow_links, code=EXIT_LINK))
            return
        members = [self.members[index] for index in self.order]
        self._measured = {(member.incarnation, after.incarnation) for member, after in links(members)}
        self._start(members, now)

    def _start(self, members: Sequence[Member], now: float) -> None:
        self.round += 1
        self._fresh = False
        self.order = [member.index for member in members]
        processes = self._settings.processes
        self.phase, self._since = Phase.RUNNING, now
        self._failures, self._pending, self._hang_since = [], None, None
        self.recovered = None
        self.stragglers, self._slow_since = {}, {}
        for position, index in enumerate(self.order):
            member = self.members[index]
            member.state, member.beats = "running", []
            self._tell(
                index,
                {
                    "type": "start",
                    "world": len(self.order) * processes,
                    "rank": position * processes,
                    "position": position,
                    "workers": len(self.order),
                    "master": self.members[self.order[0]].address if len(self.order) > 1 else "127.0.0.1",
                    **self.history(),
                },
            )

    def _failed(self, failure: Failure, now: float) -> None:
        if self.phase is Phase.RUNNING and not self._failures:
            self._settled = now + SETTLING
            self._mark_end(now)
        self._failures.append(failure)

    def _lost(self, member: Member, now: float) -> None:
        """Its pod, or at least its processes, are gone."""
        if self.members.get(member.index) is member:
            del self.members[member.index]
        if self.phase in (Phase.GATHERING, Phase.PROBING):
            self._since = now
        elif self.phase is Phase.STOPPING:
            if self._pending is None or self._pending.reason == "WorkerInterrupted":
                self._pending = _gone(member)
        elif self.phase is Phase.RUNNING and member.index in self.order:
            self._stop(_gone(member), now)

    def _stop(self, cause: Cause | None, now: float, *, grace: bool = False, dump: bool = False) -> None:
        """End the round everywhere. The cause may be found out while the processes end."""
        self.phase, self._since, self._pending = Phase.STOPPING, now, cause
        self._mark_end(now)
        for member in self.members.values():
            if member.state != "idle":
                message = {"type": "stop", "round": self.round, "grace": 15.0 if grace else 0.0, "dump": dump}
                self._tell(member.index, message)

    def _decide(self, now: float) -> None:
        """Everything has ended; another round, or none."""
        fatal = [failure for failure in self._failures if first_cause([failure]).fatal]
        cause = first_cause(fatal) if fatal else self._pending or first_cause(self._failures)
        self.last = cause
        self.phase, self._since = Phase.GATHERING, now
        if cause.fatal:
            self._end(cause)
            return
        if not cause.counted:
            return
        window, epoch = self._settings.window, self._epoch + now
        self.recent = [at for at in self.recent if not window or epoch - at < window]
        used = len(self.recent) if window else self.restarts
        if used >= self._settings.max_restarts:
            self._end(cause)
            return
        self.restarts += 1
        self.recent = [*self.recent, round(epoch, 1)][-1000:]
        used += 1
        self._not_before = now + (min(LONGEST_BACKOFF, 2.0 ** (used - 1)) if used > 1 else 0.0)

    def _end(self, cause: Cause) -> None:
        """The worker at fault ends as its process did, and the operator reads it from the pod; the others follow."""
        self.phase = Phase.ENDED
        speaker = cause.index if cause.index in self.members else self._settings.index
        for index in sorted(self.members):
            at_fault = index == speaker
            code, message = (cause.code, cause.message) if at_fault else (143, f"stopped, since {cause.message}")
            self._tell(index, {"type": "end", "code": code, "message": message})

    # Looking after a round

    def _look_for_hang(self, now: float) -> None:
        overdue = [beat for member in self.members.values() for beat in member.beats if beat.get("overdue")]
        if not overdue or self._failures:
            self._hang_since = None
        elif self._hang_since is None:
            self._hang_since = now
        elif now - self._hang_since >= CONFIRM_HANG:
            self.hangs += 1
            self._measured = set()  # the network may be what hangs
            age = max(float(beat.get("age", 0)) for beat in overdue)
            self._mark_end(now - age)
            self._stop(self._culprit(age, now), now, dump=True)

    def _culprit(self, age: float, now: float) -> Cause:
        """Who is behind: an agent that does not answer, a stopped process, or the one with the fewest steps."""
        members = [self.members[index] for index in self.order if index in self.members]
        since = f"no step for {age:.0f} s"
        hint = "the stacks of all processes are in the logs"
        for member in members:
            if now - member.heard >= SILENT:
                message = f"{since}: worker {member.index} does not answer; {hint}"
                return Cause("WorkerHung", message, True, False, member.index, EXIT_HUNG)
        beats = [(member.index, beat) for member in members for beat in member.beats]
        for index, beat in beats:
            if beat.get("stopped"):
                message = (
                    f"{since}: the process of rank {beat.get('rank')} (worker {index}) is stopped (SIGSTOP); {hint}"
                )
                return Cause("WorkerHung", message, True, False, index, EXIT_HUNG)
        steps = [int(beat.get("step", 0)) for _, beat in beats]
        index, beat = min(beats, key=lambda pair: int(pair[1].get("step", 0)))
        if max(steps) > min(steps):
            message = (
                f"{since}: rank {beat.get('rank')} (worker {index}) is behind, at step {min(steps)} while others are "
                f"at {max(steps)}; {hint}"
            )
        else:
            message = f"{since}: all ranks are at step {min(steps)}; {hint}"
        return Cause("WorkerHung", message, True, False, index, EXIT_HUNG)

    def _look_for_stragglers(self, now: float) -> None:
        """Whose own work takes longer than the others', for long enough; a worker is as slow as its slowest process."""
        work = {
            index: max((float(beat.get("compute", 0)) for beat in self.members[index].beats), default=0.0)
            for index in self.order
            if index in self.members
        }
        if len(work) < 2 or not all(work.values()):
            return
        usual = median(work.values())
        slow = {index: seconds / usual for index, seconds in work.items() if seconds > SLOW * usual}
        self._slow_since = {index: self._slow_since.get(index, now) for index in slow}
        # In steps, so that noise is no news.
        self.stragglers = {
            index: max(SLOW, float(round(times)) if times >= 2 else SLOW)
            for index, times in slow.items()
            if now - self._slow_since[index] >= SLOW_FOR
        }

    def _look_for_recovery(self, now: float) -> None:
        if self._failed_at is None or self.phase is not Phase.RUNNING:
            return
        beats = [beat for index in self.order if index in self.members for beat in self.members[index].beats]
        if beats and all(int(beat.get("steps", 0)) > 0 for beat in beats):
            self.recovered = round(now - self._failed_at, 1)
            self._failed_at = None

    def _mark_end(self, at: float) -> None:
        if self._failed_at is None:
            self._failed_at = at

    def _newcomers(self) -> list[Member]:
        return [member for index, member in sorted(self.members.items()) if index not in self.order]

    def _state(self, index: int) -> str:
        member = self.members.get(index)
        return member.state if member is not None else "gone"

    def _learn(self, told: Message) -> None:
        """A coordinator of a replaced pod takes over what the others remember."""
        history = told.get("history")
        if not isinstance(history, dict) or self.phase is Phase.RUNNING:
            return
        try:
            self.round = max(self.round, int(history["round"]))
            self.hangs = max(self.hangs, int(history["hangs"]))
            if int(history["restarts"]) > self.restarts:
                self.restarts = int(history["restarts"])
                self.recent = [float(at) for at in history["recent"]]
            self._fresh = self._fresh and self.round < self._settings.attempt
        except (KeyError, TypeError, ValueError):
            return  # Of an agent of another release; it counts as one that remembers nothing.

    def _broadcast(self, message: Message) -> None:
        for index in sorted(self.members):
            self._tell(index, message)

    def _tell(self, index: int, message: Message) -> None:
        self._out.append(Tell(index, message))


def _gone(member: Member) -> Cause:
    if member.leaving:
        return Cause("WorkerInterrupted", f"worker {member.index} was told to stop: its pod or node goes away")
    return Cause("WorkerLost", f"worker {member.index} is gone")
