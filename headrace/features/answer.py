"""From a question and rows of the online store to features with their statuses.

Present: a value. Missing: the entity has no row, or the value is null. Stale: the row is older than the ttl, so its
values are withheld. A feature that waits for the request is Present when it has a value, whatever is missing below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, Final

from headrace.api.featureset import Transform
from headrace.api.meta import parse_duration
from headrace.features.columns import Column, ColumnError, from_values, to_values
from headrace.features.layout import Row, entity_key
from headrace.features.transform import Evaluator

PRESENT: Final = "Present"
MISSING: Final = "Missing"
STALE: Final = "Stale"
MAX_CHOICES: Final = 1_000
"""Lists of features that are remembered."""
MAX_ROWS: Final = 10_000
"""Entities of one question."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class QuestionError(ValueError):
    """A question that cannot be answered: which field, what was found, what would be right."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for.

    Attributes:
        names: Entity keys, one per row.
        features: Names of the features.
        entities: Values of the keys.
        inputs: Values of request inputs that were given.
    """

    names: list[bytes]
    features: tuple[str, ...]
    entities: Mapping[str, Sequence[Any]]
    inputs: Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class Answer:
    """Features of entities.

    Attributes:
        features: Names, the columns of `rows`.
        rows: A value per feature for each entity, None where it is not Present.
        statuses: Present, Missing or Stale, like `rows`.
        event_timestamps: When each row became true; None where there is none.
        version: The version of the online store that all are of.
        counts: How many values have each status.
    """

    features: tuple[str, ...]
    rows: list[Sequence[Any]]
    statuses: list[Sequence[str]]
    event_timestamps: list[datetime | None]
    version: str
    counts: Mapping[str, int]

    def column(self, feature: str) -> list[Any]:
        """Values of one feature, one per entity."""
        index = self.features.index(feature)
        return [row[index] for row in self.rows]


@dataclass(frozen=True, slots=True)
class _Choice:
    """How answers with some features are made.

    Attributes:
        ready: Features that rows have.
        waiting: Those that are computed for the request.
        pick: From a row's fields to the values of `ready`.
        times: Some are Timestamps.
    """

    ready: tuple[str, ...]
    waiting: tuple[str, ...]
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    times: bool


def _picker(positions: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    # Whole prefixes are sliced, single fields wrapped; both are what itemgetter does not do.
    count = len(positions)
    if positions == list(range(count)):
        return lambda fields: fields[:count]
    if count == 1:
        (only,) = positions
        return lambda fields: (fields[only],)
    return itemgetter(*positions)


class Answerer:
    """Knows the transform; takes questions and gives answers. Does no I/O."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._evaluator = Evaluator(transform)
        self._choices: dict[tuple[str, ...], _Choice] = {}
        self._all = tuple(item.name for item in transform.features)
        self._position = {name: index for index, name in enumerate(transform.kept)}
        self._waits = frozenset(item.name for item in transform.on_request)
        self._times = frozenset(item.name for item in transform.features if item.type == "Timestamp")
        ttl = parse_duration(transform.ttl) if transform.ttl else None
        self._ttl = None if ttl is None else ttl // timedelta(microseconds=1)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features."""
        return self._all

    def question(
        self,
        entities: Mapping[str, Sequence[Any]],
        inputs: Mapping[str, Sequence[Any]],
        features: Sequence[str] | None,
    ) -> Question:
        """Check what is asked for.

        Raises:
            QuestionError: A key, input or feature is missing, unknown or of another type.
        """
        wanted = self._all if features is None else tuple(features)
        self._choice(wanted)
        keys = self._transform.entities
        if set(entities) != set(keys):
            raise QuestionError(
                f"entities: expected {', '.join(keys)}, found {', '.join(map(str, entities)) or 'nothing'}"
            )
        columns = [_key_values(name, type_, entities[name]) for name, type_ in keys.items()]
        rows = len(columns[0])
        if any(len(column) != rows for column in columns):
            raise QuestionError("entities: every key must have as many values, one per row")
        if rows > MAX_ROWS:
            raise QuestionError(f"entities: {rows} rows; ask for at most {MAX_ROWS} at a time")
        if len(columns) == 1:
            names = [b"%d" % value if isinstance(value, int) else value.encode() for value in columns[0]]
        else:
            names = [entity_key(row) for row in zip(*columns, strict=True)]
        return Question(names, wanted, entities, self._inputs(inputs, rows) if inputs else {})

    def _choice(self, features: tuple[str, ...]) -> _Choice:
        """How answers with these features are made; remembered, since most questions ask for the same.

        Raises:
            QuestionError: One is unknown.
        """
        if (found := self._choices.get(features)) is not None:
            return found
        if unknown := [name for name in features if name not in self._all]:
            raise QuestionError(f"features: {unknown[0]!r} is none of {', '.join(self._all[:30])}")
        if len(self._choices) >= MAX_CHOICES:
            self._choices.clear()
        ready = tuple(name for name in features if name not in self._waits)
        waiting = tuple(name for name in features if name in self._waits)
        times = bool(self._times.intersection(features))
        made = _Choice(ready, waiting, _picker([self._position[name] for name in ready]), times)
        self._choices[features] = made
        return made

    def _inputs(self, inputs: Mapping[str, Sequence[Any]], rows: int) -> dict[str, Column]:
        found = {}
        for name, values in inputs.items():
            if name not in self._transform.inputs:
                known = ", ".join(self._transform.inputs) or "none"
                raise QuestionError(f"inputs: {name!r} is no input of the request; there are: {known}")
            if not isinstance(values, list | tuple) or len(values) != rows:
                raise QuestionError(f"inputs.{name}: expected a list of {rows} values, one per row")
            try:
                found[name] = from_values(name, self._transform.inputs[name], values)
            except ColumnError as error:
                raise QuestionError(f"inputs.{error}") from error
        return found

    def answer(self, question: Question, rows: Sequence[Row | None], version: str, now: float) -> Answer:
        """Features from rows.

        Args:
            question: What was asked for.
            rows: As the online store has them.
            version: The version that they are of.
            now: Seconds since 1970.
        """
        oldest = None if self._ttl is None else int(now * 1_000_000) - self._ttl
        choice = self._choice(question.features)
        pick, waiting, count = choice.pick, choice.waiting, len(choice.ready)
        values: list[Sequence[Any]] = []
        statuses: list[Sequence[str]] = []
        moments: list[datetime | None] = []
        present, missing, stale = (PRESENT,) * count, (MISSING,) * count, (STALE,) * count
        nothing = (None,) * count
        counts = {PRESENT: 0, MISSING: 0, STALE: 0}
        for row in rows:
            if row is None:
                values.append(nothing)
                statuses.append(missing)
                moments.append(None)
                counts[MISSING] += count
                continue
            when, fields = row
            moments.append(_EPOCH + timedelta(microseconds=when))
            if oldest is not None and when < oldest:
                values.append(nothing)
                statuses.append(stale)
                counts[STALE] += count
                continue
            found = pick(fields)
            values.append(found)
            if None in found:
                status = tuple([MISSING if value is None else PRESENT for value in found])
                lost = status.count(MISSING)
                statuses.append(status)
                counts[MISSING] += lost
                counts[PRESENT] += count - lost
            else:
                statuses.append(present)
                counts[PRESENT] += count
        if waiting and rows:
            self._complete(question, rows, oldest, waiting, values, statuses, counts)
            names = (*choice.ready, *waiting)
            values, statuses = _ordered(names, question.features, values), _ordered(names, question.features, statuses)
        if choice.times:
            values = [self._with_times(question.features, row) for row in values]
        return Answer(question.features, values, statuses, moments, version, counts)

    def _complete(
        self,
        question: Question,
        rows: Sequence[Row | None],
        oldest: int | None,
        waiting: Sequence[str],
        values: list[Sequence[Any]],
        statuses: list[Sequence[str]],
        counts: dict[str, int],
    ) -> None:
        """Append the features that wait for the request to each row."""
        transform = self._transform
        usable = [row if row is not None and (oldest is None or row[0] >= oldest) else None for row in rows]
        known = {name: from_values(name, type_, question.entities[name]) for name, type_ in transform.entities.items()}
        known[transform.timestamp] = _moments(usable)
        for index, (name, type_) in enumerate(transform.kept.items()):
            known[name] = _stored(type_, [None if row is None else row[1][index] for row in usable])
        for name, type_ in transform.inputs.items():
            given = question.inputs.get(name)
            known[name] = from_values(name, type_, [None] * len(rows)) if given is None else given
        computed = self._evaluator.features(known, waiting)
        columns = [to_values(computed[name]) for name in waiting]
        for index, row in enumerate(rows):
            found = tuple(column[index] for column in columns)
            absent = STALE if row is not None and usable[index] is None else MISSING
            status = tuple(absent if value is None else PRESENT for value in found)
            values[index] = (*values[index], *found)
            statuses[index] = (*statuses[index], *status)
            for item in status:
                counts[item] += 1

    def _with_times(self, features: Sequence[str], row: Sequence[Any]) -> list[Any]:
        return [
            _EPOCH + timedelta(microseconds=value) if name in self._times and value is not None else value
            for name, value in zip(features, row, strict=True)
        ]


def _key_values(name: str, type_: str, values: Any) -> list[Any]:
    if not isinstance(values, list | tuple) or not values:
        raise QuestionError(f"entities.{name}: expected a list with a value per row, found {values!r:.60}")
    wanted = int if type_ == "Int64" else str
    for value in values:
        if type(value) is not wanted:
            raise QuestionError(f"entities.{name}: expected {type_}, found {value!r:.60}")
    return list(values)


def _stored(type_: str, values: list[Any]) -> Column:
    # Times are microseconds in rows, and seconds in what people send.
    return from_values("", "Int64" if type_ == "Timestamp" else type_, values)


def _moments(rows: Sequence[Row | None]) -> Column:
    return from_values("", "Int64", [None if row is None else row[0] for row in rows])


def _ordered(names: Sequence[str], wanted: Sequence[str], rows: list[Sequence[Any]]) -> list[Sequence[Any]]:
    if tuple(names) == tuple(wanted):
        return rows
    order = [names.index(name) for name in wanted]
    return [[row[index] for index in order] for row in rows]
