"""The kind as the API server knows it."""

from __future__ import annotations

from typing import ClassVar

from headrace.api.inferenceservice.spec import InferenceServiceSpec
from headrace.api.inferenceservice.status import InferenceServiceStatus
from headrace.api.meta import Resource
from headrace.api.schema import Column, KindInfo, name_rules, rules

MAX_NAME_LENGTH = 63 - len("-predictor")
"""Names of Services are DNS labels (RFC 1035), at most 63 characters."""


@rules(*name_rules(MAX_NAME_LENGTH, "<name>-predictor"))
class InferenceService(Resource):
    """A model behind one address that goes on answering when the model does not."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="InferenceService",
        plural="inferenceservices",
        singular="inferenceservice",
        short_names=("isvc",),
        columns=(
            Column("URL", ".status.url"),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
            Column("Answering", ".status.answering", description="The step of the chain that answers now"),
            Column("Predictor", ".status.predictor.summary", description="Predictor pods ready of asked for"),
            Column("Canary", ".status.canary.summary", description="Percent and phase of the canary"),
            Column("Shadow", ".status.shadow.summary", priority=1, description="Mirrored requests answered otherwise"),
            Column("Router", ".status.router.summary", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )
    spec: InferenceServiceSpec
    status: InferenceServiceStatus | None = None
