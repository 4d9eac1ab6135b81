"""FeatureSet: the kind."""

from __future__ import annotations

from typing import ClassVar

from headrace.api.featureset.spec import FeatureSetSpec
from headrace.api.featureset.status import FeatureSetStatus
from headrace.api.meta import Resource
from headrace.api.schema import Column, KindInfo, name_rules, rules

MAX_NAME_LENGTH = 63 - len("-refresh-12345678")
"""Names of refresh Jobs are labels of their pods too."""


@rules(*name_rules(MAX_NAME_LENGTH, "<name>-refresh-<number>"))
class FeatureSet(Resource):
    """Features that are computed alike in training, in refreshes of an online store, and at request time."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="FeatureSet",
        plural="featuresets",
        singular="featureset",
        short_names=("fs",),
        columns=(
            Column("URL", ".status.url", priority=1),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
            Column("Entities", ".status.online.entities", "integer", description="Entities in the online store"),
            Column("Refresh", ".status.refresh.summary", description="What a refresh does, or how it ended"),
            Column("Refreshed", ".status.online.refreshedAt", "date", description="When it was last loaded"),
            Column("Servers", ".status.servers.summary", description="Server pods ready of asked for", priority=1),
            Column("Hash", ".status.hash", description="Hash of transform and schema", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )
    spec: FeatureSetSpec
    status: FeatureSetStatus | None = None
