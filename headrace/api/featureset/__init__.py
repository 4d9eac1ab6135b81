"""FeatureSet: data hosting, with one transform for training, refreshes and requests."""

from headrace.api.featureset.expression import ExpressionError
from headrace.api.featureset.kind import FeatureSet
from headrace.api.featureset.spec import (
    Cache,
    Entity,
    Feature,
    FeatureServer,
    FeatureSetSpec,
    OnlineStore,
    Refresh,
    RequestInput,
    Source,
    SourceColumn,
)
from headrace.api.featureset.status import (
    FeatureSetStatus,
    FeatureStatus,
    Online,
    RefreshReport,
    RefreshStatus,
    ServerCounts,
    ServerReport,
)
from headrace.api.featureset.transform import Computed, Transform, differences

__all__ = [
    "Cache",
    "Computed",
    "Entity",
    "ExpressionError",
    "Feature",
    "FeatureServer",
    "FeatureSet",
    "FeatureSetSpec",
    "FeatureSetStatus",
    "FeatureStatus",
    "Online",
    "OnlineStore",
    "Refresh",
    "RefreshReport",
    "RefreshStatus",
    "RequestInput",
    "ServerCounts",
    "ServerReport",
    "Source",
    "SourceColumn",
    "Transform",
    "differences",
]
