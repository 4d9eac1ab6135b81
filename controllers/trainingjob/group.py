"""What the agents of a job say about their rounds: a part of worker 0's report, bounded and checked like the rest."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from controllers.runtime.objects import REPORT, Manifest

MAX_LENGTH = 16384
"""Characters of a report that are looked at."""
MOST_ROUNDS = 10_000_000

Index = Annotated[int, Field(ge=0, le=4095)]
Count = Annotated[int, Field(ge=0, le=MOST_ROUNDS)]
Figure = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Link = tuple[Index, Index, Figure, Figure]


class Group(BaseModel):
    """The state of the agents' group; see `headrace.training.agent.coordinator`.

    Attributes:
        state: Gathering, Probing (links are measured), Running, Stopping or Ended.
        round: Number of the last round that was started, which is an attempt of the job.
        restarts: Counted restarts so far.
        recent: When the last ones were, in seconds since 1970.
        workers: Workers in the round.
        order: Workers in the order of their ranks, the first 64; None: the order of their numbers.
        missing: Workers that are waited for.
        reason: Why the round before ended, in CamelCase.
        message: The same in words.
        recovered: Seconds from that end to the next step.
        stragglers: Workers that are slower than the others, with how much.
        links: From worker, to worker, milliseconds there and back, bytes per second; the first 64.
        slow_links: Those of them that are slow, in words.
    """

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)

    state: Annotated[str, Field(pattern="^(Gathering|Probing|Running|Stopping|Ended)$")]
    round: Count = 0
    restarts: Count = 0
    recent: Annotated[list[Annotated[float, Field(ge=0, le=2**40)]], Field(max_length=1000)] = Field(
        default_factory=list
    )
    workers: Annotated[int, Field(ge=0, le=4096)] = 0
    order: Annotated[list[Index], Field(max_length=64)] | None = None
    missing: Annotated[list[Index], Field(max_length=16)] = Field(default_factory=list)
    reason: Annotated[str, Field(max_length=64, pattern="^([A-Z][A-Za-z]*)?$")] = ""
    message: Annotated[str, Field(max_length=1024)] = ""
    recovered: Annotated[float, Field(ge=0, le=10**9)] | None = None
    stragglers: Annotated[dict[Annotated[str, Field(pattern="^[0-9]{1,4}$")], float], Field(max_length=16)] = Field(
        default_factory=dict
    )
    links: Annotated[list[Link], Field(max_length=64)] = Field(default_factory=list)
    slow_links: Annotated[str, Field(max_length=1024)] = ""


class _Report(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    group: Group | None = None


def group_of(pod: Manifest | None) -> Group | None:
    """What worker 0 says about the group; None where it says nothing or nothing valid, which `report.read` tells."""
    text = ((pod or {}).get("metadata", {}).get("annotations") or {}).get(REPORT)
    if not text or len(text) > MAX_LENGTH:
        return None
    try:
        return _Report.model_validate_json(text).group
    except ValidationError:
        return None
