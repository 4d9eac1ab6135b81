"""What may be wrong with a FeatureSet; see bad_specs."""

from __future__ import annotations

from typing import Any

from tests.api.bad_specs import Bad, Manifest

GOOD_FEATURE_SET: Manifest = {
    "apiVersion": "headrace.dev/v1alpha1",
    "kind": "FeatureSet",
    "metadata": {"name": "good"},
    "spec": {
        "entities": [{"name": "driver_id"}],
        "source": {"uri": "s3://team/drivers", "timestampColumn": "event_timestamp"},
        "requestInputs": [{"name": "trip_km", "type": "Float64"}],
        "features": [
            {"name": "trips", "type": "Int64"},
            {"name": "share", "type": "Float64", "expression": "trip_km / trips"},
        ],
        "ttl": "24h",
    },
}
FEATURE = {"name": "f", "type": "Int64"}


def bad(name: str, patch: Any, field: str, words: str, **more: Any) -> Bad:
    """A mistake in a FeatureSet."""
    return Bad(name, GOOD_FEATURE_SET, patch, field, words, **more)


FEATURE_SETS: tuple[Bad, ...] = (
    bad("no entity", {"entities": []}, "spec.entities", "at least 1 items"),
    bad("no feature", {"features": []}, "spec.features", "at least 1 items"),
    bad("an entity with a hyphen", {"entities": [{"name": "driver-id"}]}, "spec.entities[0].name", "digits and '_'"),
    bad("a key of another type", {"entities": [{"name": "id", "type": "Float64"}]}, "spec.entities[0].type", "Int64"),
    bad("the same feature twice", {"features": [FEATURE, FEATURE]}, "spec.features[1]", "Duplicate value"),
    bad(
        "a feature of an unknown type",
        {"features": [{"name": "f", "type": "Decimal"}]},
        "spec.features[0].type",
        '"Float64", "String", "Timestamp"',
    ),
    bad(
        "an empty expression",
        {"features": [{"name": "f", "type": "Int64", "expression": ""}]},
        "spec.features[0].expression",
        "at least 1 chars",
    ),
    bad(
        "a key as a feature",
        {"features": [{"name": "driver_id", "type": "Int64"}]},
        "spec.features",
        "give the feature another name and an expression",
    ),
    bad("a table in a web server", {"source": {"uri": "https://x/y"}}, "spec.source.uri", "write a storage address"),
    bad("no timestamp column", {"source": {"timestampColumn": None}}, "spec.source.timestampColumn", "Required value"),
    bad("a ttl without a unit", {"ttl": "24"}, "spec.ttl", "write a duration such as 250ms"),
    bad("a ttl of nothing", {"ttl": "0s"}, "spec.ttl", "above zero"),
    bad("no server", {"server": {"replicas": 0}}, "spec.server.replicas", "greater than or equal to 1"),
    bad("a cache below nothing", {"server": {"cache": {"maxEntities": -1}}}, "spec.server.cache.maxEntities", "to 0"),
    bad("an unknown field", {"refresh": {"cron": "* * * * *"}}, "", "unknown field"),
    bad(
        "name too long",
        {},
        "metadata",
        "at most 46 characters, so that <name>-refresh-<number> fits in 63",
        python=False,
        metadata={"name": "a" * 47},
    ),
)
