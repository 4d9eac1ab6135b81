"""What the pods of a FeatureSet read: the contract between the operator and the data plane."""

from __future__ import annotations

from headrace.api.featureset.spec import FeatureSetSpec
from headrace.api.schema import Model

FILE = "featureset.json"
"""Name of the file in the ConfigMap."""
HTTP_PORT = 8080


class ServedFeatureSet(Model):
    """A FeatureSet by its name."""

    namespace: str
    """Its namespace."""
    name: str
    """Its name."""
    spec: FeatureSetSpec
    """Its spec."""
