"""What an agent is told: the JSON of HEADRACE_AGENT, and who and where its pod is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.training.agent import preflight
from headrace.training.errors import ConfigurationError

VARIABLE = "HEADRACE_AGENT"
PORT = 29400
"""Where worker 0's agent listens; torchrun's own rendezvous port."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One agent's view of its job.

    Attributes:
        index: Number of the worker.
        workers: Workers asked for.
        min_workers: Fewest workers that a round starts with.
        max_workers: Most workers that it takes in.
        processes: Training processes of each worker.
        coordinator: Host of worker 0.
        port: Port of worker 0's agent.
        master_port: Port of the training processes' rendezvous.
        attempt: Number of the first round that this agent may take part in.
        restarts: Counted restarts before it.
        recent: When the last ones were, in seconds since 1970.
        max_restarts: Counted restarts allowed within `window`.
        window: Seconds; 0: since the job began.
        hang_timeout: Seconds without a step that count as a hang; 0: learnt.
        token: Secret that the agents of a job share.
        incarnation: Identity of the pod; a replacement has another.
        address: Address of the pod.
        zone: Zone of its node.
        node: Name of its node.
        preflight: What is asked of the links between workers; None: they are not measured.
    """

    index: int = 0
    workers: int = 1
    min_workers: int = 1
    max_workers: int = 1
    processes: int = 1
    coordinator: str = "127.0.0.1"
    port: int = PORT
    master_port: int = 29500
    attempt: int = 1
    restarts: int = 0
    recent: tuple[float, ...] = ()
    max_restarts: int = 10
    window: float = 0.0
    hang_timeout: float = 0.0
    token: str = ""
    incarnation: str = ""
    address: str = "127.0.0.1"
    zone: str = ""
    node: str = ""
    preflight: preflight.Settings | None = None

    @property
    def elastic(self) -> bool:
        """Rounds may have fewer workers than were asked for."""
        return self.min_workers < self.max_workers

    @classmethod
    def read(cls, values: Mapping[str, str]) -> Settings:
        """From the environment.

        Raises:
            ConfigurationError: HEADRACE_AGENT is not what the operator writes.
        """
        try:
            told = json.loads(values.get(VARIABLE) or "{}")
            workers = int(told.get("workers", 1))
            return cls(
                index=int(told.get("index", 0)),
                workers=workers,
                min_workers=int(told.get("minWorkers", workers)),
                max_workers=int(told.get("maxWorkers", workers)),
                processes=int(told.get("processes", 1)),
                coordinator=str(told.get("coordinator", "127.0.0.1")),
                port=int(told.get("port", PORT)),
                master_port=int(values.get("MASTER_PORT") or 29500),
                attempt=int(told.get("attempt", 1)),
                restarts=int(told.get("restarts", 0)),
                recent=tuple(float(item) for item in told.get("recent", ())),
                max_restarts=int(told.get("maxRestarts", 10)),
                window=float(told.get("window", 0)),
                hang_timeout=float(told.get("hangTimeout", 0)),
                token=values.get("HEADRACE_RUN_ID", ""),
                incarnation=values.get("POD_UID", ""),
                address=values.get("POD_IP") or "127.0.0.1",
                zone=values.get("HEADRACE_ZONE", ""),
                node=values.get("HEADRACE_NODE", ""),
                preflight=preflight.Settings.of(told.get("preflight")),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                VARIABLE, f"{values.get(VARIABLE)!r:.200} ({error})", "use an image of the operator's release"
            ) from error
