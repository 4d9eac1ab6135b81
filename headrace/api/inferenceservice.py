"""InferenceService: a model behind one address, with an ordered chain of fallbacks."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, WithJsonSchema, model_validator

from headrace.api.meta import LocalReference, PodOptions, Resource, Status
from headrace.api.schema import (
    LIST_ATOMIC,
    Column,
    DNSLabel,
    KindInfo,
    Model,
    PositiveDuration,
    Rule,
    StorageURI,
    list_map,
    name_rules,
    rules,
)

MAX_NAME_LENGTH = 63 - len("-predictor")
"""Names of Services are DNS labels (RFC 1035), at most 63 characters."""


class ModelSource(Model):
    """A model in storage."""

    model_format: Literal["ONNX"] = "ONNX"
    """Format of the model file. ONNX: served by ONNX Runtime."""
    storage_uri: StorageURI
    """The model file, or a folder with one model.onnx."""
    secret_ref: LocalReference | None = None
    """Secret with storage credentials, as in a TrainingJob's storage.secretRef; by default the embedded store's."""


_WHOLE = {
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
}
"""Least and greatest value of the datatypes of whole numbers."""
_WRITE = {
    "BOOL": "write true or false",
    "BYTES": "write text in quotes",
    "FP32": "write numbers",
    "FP64": "write numbers",
    **{name: f"write whole numbers from {least} to {most}" for name, (least, most) in _WHOLE.items()},
}
"""What a tensor's values are to be, by its datatype."""


def _is_a(datatype: str, value: Any) -> bool:
    """Whether a JSON value is one of this datatype."""
    if datatype in ("BOOL", "BYTES"):
        return isinstance(value, bool if datatype == "BOOL" else str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if datatype in ("FP32", "FP64"):
        return True
    least, most = _WHOLE[datatype]
    return isinstance(value, int) and least <= value <= most


def _fallback_order(spec: InferenceServiceSpec) -> bool:
    return all(step.static is None for step in spec.fallback[:-1])


class Tensor(Model):
    """One named output tensor of the Open Inference Protocol, without the batch dimension."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the output."""
    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "BYTES"
    ]
    """Element type."""
    shape: Annotated[
        list[Annotated[int, Field(ge=1, le=65536)]], Field(max_length=8, json_schema_extra=LIST_ATOMIC)
    ] = Field(default_factory=list)
    """Shape for one row of the request; the batch dimension is put before it."""
    data: Annotated[
        list[Any],
        Field(max_length=65536),
        WithJsonSchema(
            {
                "type": "array",
                "maxItems": 65536,
                "items": {"x-kubernetes-preserve-unknown-fields": True},
                "x-kubernetes-list-type": "atomic",
            }
        ),
    ]
    """Flat row-major values for one row, repeated for each row of the request: as many as the product of `shape`."""

    @model_validator(mode="after")
    def _hold_one_row(self) -> Self:
        # Not a CEL rule: the values have no one type in a structural schema, so CEL does not see them.
        if len(self.data) != (count := math.prod(self.shape)):
            raise ValueError(
                f"data of output {self.name} has {len(self.data)} values and shape {self.shape} means {count}: "
                "change data or shape (which is that of one row, without the batch)"
            )
        for value in self.data:
            if not _is_a(self.datatype, value):
                right = f"{_WRITE[self.datatype]}, or change datatype"
                raise ValueError(f"data of output {self.name}: {value!r} is no {self.datatype}: {right}")
        return self


class StaticResponse(Model):
    """A fixed answer: the last resort that cannot fail."""

    outputs: Annotated[list[Tensor], Field(min_length=1, max_length=64, json_schema_extra=list_map("name"))]
    """Output tensors of the answer."""


@rules(
    Rule(
        "self.minimumNumberOfCalls <= self.slidingWindowSize",
        "minimumNumberOfCalls must not exceed slidingWindowSize, or the breaker never opens",
        ".minimumNumberOfCalls",
        lambda breaker: breaker.minimum_number_of_calls <= breaker.sliding_window_size,
    )
)
class CircuitBreaker(Model):
    """When a step is given a rest (resilience4j's count-based semantics)."""

    sliding_window_size: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Last calls that the failure rate is computed over."""
    minimum_number_of_calls: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Calls before the rate is looked at."""
    failure_rate_threshold: Annotated[int, Field(ge=1, le=100)] = 50
    """Percent of failed calls (errors and timeouts) that opens the breaker."""
    wait_duration_in_open_state: PositiveDuration = "5s"
    """Time during which the step is not asked."""
    permitted_calls_in_half_open_state: Annotated[int, Field(ge=1, le=1000)] = 3
    """Trial calls that decide between closing and opening again."""


class StepOptions(Model):
    """How long a step of the chain may take and when it is given up."""

    timeout: PositiveDuration = "1s"
    """Time for this step's answer; after it the next step is asked."""
    max_concurrency: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Requests in flight to this step from one router; above it the step counts as overloaded and the next is asked."""
    circuit_breaker: CircuitBreaker = Field(default_factory=CircuitBreaker)
    """When the step is given a rest."""


@rules(
    Rule(
        "self.minReplicas <= self.maxReplicas",
        "maxReplicas must be at least minReplicas",
        ".maxReplicas",
        lambda predictor: predictor.min_replicas <= predictor.max_replicas,
    )
)
class Predictor(StepOptions, PodOptions):
    """The primary model, in pods of its own."""

    model: ModelSource
    """The model to serve."""
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    """Least pods."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    """Most pods; more than minReplicas adds a HorizontalPodAutoscaler."""
    target_cpu_utilization: Annotated[int, Field(ge=1, le=100)] = 70
    """Percent of the requested CPU that the autoscaler aims at."""


@rules(
    Rule(
        "has(self.model) != has(self.static)",
        "a fallback step is either a model or a static response: set exactly one of model and static",
        check=lambda step: (step.model is None) != (step.static is None),
    )
)
class FallbackStep(StepOptions):
    """What answers when the steps before it do not."""

    name: DNSLabel
    """Name of the step, shown in the response header and in metrics."""
    model: ModelSource | None = None
    """A smaller model, run inside the router so that it shares no fate with the primary's pods."""
    static: StaticResponse | None = None
    """A fixed answer."""


class Router(PodOptions):
    """The pods that answer the service's address."""

    replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    """Router pods, spread over zones."""


@rules(
    Rule(
        "!has(self.fallback) || self.fallback.all(s, s.name != 'predictor')",
        "the name predictor means the primary model: give the fallback step another name",
        ".fallback",
        lambda spec: all(step.name != "predictor" for step in spec.fallback),
    ),
    Rule(
        "!has(self.fallback) || self.fallback.size() < 2 || "
        "!self.fallback.exists(s, has(s.static)) || has(self.fallback[self.fallback.size() - 1].static)",
        "a static response never fails, so no step after it is ever asked: put it last",
        ".fallback",
        _fallback_order,
    ),
)
class InferenceServiceSpec(Model):
    """The primary model, what answers in its place, and the pods in front."""

    predictor: Predictor
    """The primary model."""
    fallback: Annotated[list[FallbackStep], Field(max_length=8, json_schema_extra=list_map("name"))] = Field(
        default_factory=list
    )
    """Steps asked in order when the one before times out, errors, is overloaded or has its breaker open."""
    router: Router = Field(default_factory=Router)
    """The pods that answer the service's address."""


class ReplicaCounts(Model):
    """Pods of one part."""

    ready: int = 0
    """Pods that are ready."""
    total: int = 0
    """Pods asked for."""
    summary: str = ""
    """ready/total, for kubectl get."""


class StepStatus(Model):
    """How one step of the chain is doing, as the routers see it."""

    name: str
    """Name of the step; predictor is the primary."""
    state: Literal["Answering", "Standby", "Open", "NotReady", "Unknown"]
    """Answering: asked first now. Standby: asked when those before fail. Open: its breaker is open on a router."""
    reason: str = ""
    """Why a step is not asked."""


class InferenceServiceStatus(Status):
    """How the service is doing."""

    url: str = ""
    """Address inside the cluster."""
    answering: str = ""
    """The step that answers now."""
    steps: Annotated[list[StepStatus], Field(json_schema_extra=list_map("name"))] = Field(default_factory=list)
    """Every step in order."""
    predictor: ReplicaCounts = Field(default_factory=ReplicaCounts)
    """Pods of the primary model."""
    router: ReplicaCounts = Field(default_factory=ReplicaCounts)
    """Pods in front."""


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
            Column("Router", ".status.router.summary", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )
    spec: InferenceServiceSpec
    status: InferenceServiceStatus | None = None
