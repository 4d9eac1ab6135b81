"""The spec of a FeatureSet: entities, source, features and how they are kept and served."""

from __future__ import annotations

import keyword
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headrace.api.featureset.expression import ExpressionError
from headrace.api.featureset.transform import Transform, transform_of
from headrace.api.meta import LocalReference, PodOptions
from headrace.api.schema import Model, PositiveDuration, Rule, StorageURI, list_map, remedy, rules

_NAME = "^[A-Za-z_][A-Za-z0-9_]*$"
FieldName = Annotated[
    str,
    Field(
        pattern=_NAME,
        min_length=1,
        max_length=63,
        json_schema_extra=remedy(
            f"self.matches('{_NAME}')", "write a name of letters, digits and '_' that begins with no digit"
        ),
    ),
]
"""A name that expressions can use."""
ColumnType = Literal["Bool", "Int32", "Int64", "Float32", "Float64", "String", "Timestamp"]


class Entity(Model):
    """A join key: what features are looked up by."""

    name: FieldName
    """Column of the source, and the key's name in requests."""
    type: Literal["Int64", "String"] = "Int64"
    """Its type."""


class SourceColumn(Model):
    """A column of the source."""

    name: FieldName
    """Its name in the table."""
    type: ColumnType
    """Its type; the file's own is converted where that loses nothing."""


class Source(Model):
    """The table that features come from: one row per entity and moment."""

    uri: StorageURI
    """A Parquet file, or a folder of them."""
    timestamp_column: FieldName
    """When a row became true, in UTC where it says no zone. Training joins use no row that is later than the example;
    the latest row of an entity is served."""
    columns: Annotated[list[SourceColumn], Field(max_length=512, json_schema_extra=list_map("name"))] = Field(
        default_factory=list
    )
    """Columns that expressions use, beside those that are a feature as they are."""
    secret_ref: LocalReference | None = None
    """Secret with storage credentials; by default the embedded store's."""


class RequestInput(Model):
    """A value that only the request knows."""

    name: FieldName
    """Its name in requests, and the column of the same name in training data."""
    type: ColumnType
    """Its type."""


class Feature(Model):
    """One feature."""

    name: FieldName
    """Its name."""
    type: ColumnType
    """Type of its values."""
    expression: (
        Annotated[str, Field(min_length=1, max_length=1000, examples=["log1p(trips)", "amount / mean_amount"])] | None
    ) = None
    """How it is computed from columns, request inputs and features before it; by default the column of its name."""


class OnlineStore(Model):
    """Where features are kept for reading."""

    secret_ref: LocalReference | None = None
    """Secret whose key HEADRACE_ONLINE_STORE_URI is the address: redis://, rediss://, redis+sentinel:// or
    redis+cluster://; by default the installation's store."""


class Refresh(Model):
    """When the online store is loaded anew."""

    schedule: Annotated[str, Field(max_length=100, examples=["0 3 * * *", "*/15 * * * *"])] = ""
    """Cron schedule; empty for none."""
    time_zone: Annotated[str, Field(max_length=64, examples=["Europe/Berlin"])] = "UTC"
    """IANA time zone of the schedule."""
    on_update: bool = True
    """Refresh when files of the source change."""
    poll_interval: PositiveDuration = "30s"
    """How often the servers look whether the source has changed."""
    incremental: bool = True
    """Where files were only added, load their rows alone; a source whose files change is always loaded as a whole."""
    max_rows_per_second: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    """Most entities written in a second, to spare the store; 0 for no limit."""
    pod: PodOptions = Field(default_factory=PodOptions)
    """The pod that loads."""


class Cache(Model):
    """What each server keeps in memory of the online store."""

    max_entities: Annotated[int, Field(ge=0, le=100_000_000)] = 100_000
    """Entities at most; 0 for no cache. The most asked for are loaded first when a server starts."""


class FeatureServer(PodOptions):
    """The pods that answer over HTTP."""

    replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    """Pods, spread over zones."""
    cache: Cache = Field(default_factory=Cache)
    """What each keeps in memory."""


@rules(
    Rule(
        "self.features.all(f, has(f.expression) || !self.entities.exists(e, e.name == f.name))",
        "an entity's key is no feature as it is: give the feature another name and an expression",
        ".features",
        lambda spec: (
            not {item.name for item in spec.features if item.expression is None} & {e.name for e in spec.entities}
        ),
    ),
)
class FeatureSetSpec(Model):
    """What the features are, where they come from, and how they are served."""

    entities: Annotated[list[Entity], Field(min_length=1, max_length=8, json_schema_extra=list_map("name"))]
    """Join keys."""
    source: Source
    """The table."""
    request_inputs: Annotated[list[RequestInput], Field(max_length=64, json_schema_extra=list_map("name"))] = Field(
        default_factory=list
    )
    """Values that only the request knows; features that use them are computed when they are asked for."""
    features: Annotated[list[Feature], Field(min_length=1, max_length=512, json_schema_extra=list_map("name"))]
    """The features in order: the transform, which training, refreshes and requests run alike."""
    ttl: PositiveDuration | None = None
    """Age after which a row is no longer used, in training joins and online alike; by default never."""
    online_store: OnlineStore = Field(default_factory=OnlineStore)
    """Where features are kept for reading."""
    refresh: Refresh = Field(default_factory=Refresh)
    """When the online store is loaded anew."""
    server: FeatureServer = Field(default_factory=FeatureServer)
    """The pods that answer over HTTP."""

    @model_validator(mode="after")
    def _mean_something(self) -> Self:
        # Not CEL: the language of expressions is ours.
        seen: dict[str, str] = {}
        named = [
            *((item.name, f"entities[{index}]") for index, item in enumerate(self.entities)),
            (self.source.timestamp_column, "source.timestampColumn"),
            *((item.name, f"source.columns[{index}]") for index, item in enumerate(self.source.columns)),
            *((item.name, f"requestInputs[{index}]") for index, item in enumerate(self.request_inputs)),
        ]
        for name, path in named:
            if keyword.iskeyword(name):
                raise ValueError(f"{path}: {name!r} is a word of the expression language: choose another name")
            if name in seen:
                raise ValueError(
                    f"{path}: {name!r} is also {seen[name]}: names must differ, since expressions use them"
                )
            seen[name] = path
        features = [item.name for item in self.features]
        if twice := next((name for name in features if features.count(name) > 1), None):
            raise ValueError(f"features: {twice!r} is there twice: give each its own name")
        try:
            self.transform()
        except ExpressionError as error:
            raise ValueError(str(error)) from error
        return self

    def transform(self) -> Transform:
        """What the features mean, checked.

        Raises:
            ExpressionError: An expression means nothing; cannot be for a spec that was validated.
        """
        return transform_of(self)
