"""TrainingJob: a distributed training run that survives its pods."""

from __future__ import annotations

from typing import ClassVar

from headrace.api.meta import Resource
from headrace.api.schema import Column, KindInfo, Scale, name_rules, rules
from headrace.api.trainingjob.spec import TrainingJobSpec
from headrace.api.trainingjob.status import TrainingJobStatus

MAX_NAME_LENGTH = 63 - len("-worker-4095")
"""A pod's name is its host name, at most 63 characters (RFC 1123)."""


@rules(*name_rules(MAX_NAME_LENGTH, "<name>-worker-<rank>"))
class TrainingJob(Resource):
    """A distributed training run: workers in one or more zones, checkpoints in storage, a model at the end."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="TrainingJob",
        plural="trainingjobs",
        singular="trainingjob",
        short_names=("tj",),
        scale=Scale(".spec.numWorkers", ".status.workers.total", ".status.selector"),
        columns=(
            Column(
                "Workers", ".status.workers.summary", description="Workers that run or finished, of workers asked for"
            ),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
            Column("Progress", ".status.progress.percent", "integer", description="Percent of steps finished"),
            Column("Epoch", ".status.progress.epoch", "integer"),
            Column("Loss", ".status.progress.loss"),
            Column("Samples/s", ".status.progress.throughput", priority=1),
            Column("Servers", ".status.servers.summary", priority=1, description="Servers that answer, of all"),
            Column("Restarts", ".status.restarts", "integer", priority=1),
            Column("Model", ".status.modelUri", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )
    spec: TrainingJobSpec
    status: TrainingJobStatus | None = None
