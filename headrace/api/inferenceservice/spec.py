"""What a user asks of an InferenceService."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.inferenceservice.model import IN_ROUTER, Batching, ModelSource
from headrace.api.inferenceservice.options import RemoteOptions, StepOptions
from headrace.api.inferenceservice.request_log import RequestLog
from headrace.api.inferenceservice.static import LastAnswer, StaticResponse
from headrace.api.inferenceservice.traffic import Allocation, Canary, Shadow
from headrace.api.meta import PodOptions
from headrace.api.schema import (
    LIST_ATOMIC,
    DNSLabel,
    ImageName,
    Model,
    PositiveDuration,
    Rule,
    list_map,
    remedy,
    rules,
)


class CustomContainer(Model):
    """How a server of your own runs. It answers at /v2/health/live, /v2/health/ready and /v2/models/<name>/infer."""

    command: Annotated[list[str], Field(max_length=256, json_schema_extra=LIST_ATOMIC)] = Field(default_factory=list)
    """Entry point; by default the image's."""
    args: Annotated[list[str], Field(max_length=256, json_schema_extra=LIST_ATOMIC)] = Field(default_factory=list)
    """Arguments."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 8080
    """Where it listens; below 1024 a process without privileges may not."""
    model_name: (
        Annotated[
            str,
            Field(
                pattern=r"^[^/\s]+$",
                max_length=253,
                json_schema_extra=remedy(
                    r"self.matches(r'^[^/\s]+$')", "write the name of the model without '/' and spaces"
                ),
            ),
        ]
        | None
    ) = None
    """Name of the model in its paths; by default the service's."""


def _fallback_order(spec: InferenceServiceSpec) -> bool:
    return all(step.static is None for step in spec.fallback[:-1])


@rules(
    Rule(
        "self.minReplicas <= self.maxReplicas",
        "maxReplicas must be at least minReplicas",
        ".maxReplicas",
        lambda predictor: predictor.min_replicas <= predictor.max_replicas,
    ),
    Rule(
        "has(self.model) != has(self.container)",
        "set exactly one of model and container",
        check=lambda predictor: (predictor.model is None) != (predictor.container is None),
    ),
    Rule(
        "!has(self.container) || has(self.image)",
        "container runs in an image of your own: set image",
        ".image",
        lambda predictor: predictor.container is None or predictor.image is not None,
    ),
    Rule(
        f"self.inference == 'Remote' || (has(self.model) && self.model.modelFormat in {list(IN_ROUTER)})",
        f"the router itself runs {', '.join(IN_ROUTER)}: convert the model to ONNX, or set inference: Remote",
        ".inference",
        lambda predictor: (
            predictor.inference == "Remote"
            or (predictor.model is not None and predictor.model.model_format in IN_ROUTER)
        ),
    ),
    Rule(
        "!has(self.batching) || (has(self.model) && self.inference == 'Remote')",
        "batching is for a model in pods of its own: remove batching, or set model and inference: Remote",
        ".batching",
        lambda predictor: (
            predictor.batching is None or (predictor.model is not None and predictor.inference == "Remote")
        ),
    ),
)
class Predictor(RemoteOptions, PodOptions):
    """The primary model, in pods of its own."""

    model: ModelSource | None = None
    """The model to serve."""
    inference: Literal["Remote", "Local"] = "Remote"
    """Where the model runs. Remote: in pods of its own, scaled apart. Local: inside the routers, which saves the hop
    between them; the pods are then those of router, and image, resources, env and replicas here mean nothing."""
    batching: Batching | None = None
    """Runs requests that come together as one; by default each runs by itself."""
    container: CustomContainer | None = None
    """A server of your own that speaks the Open Inference Protocol, instead of a model."""
    image: ImageName | None = None
    """Image of the pods; by default the platform's for the format. One of your own has what container runs, or
    `pip install headrace[serving]` and the library of the format."""
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    """Least pods."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    """Most pods; more than minReplicas adds a HorizontalPodAutoscaler."""
    target_cpu_utilization: Annotated[int, Field(ge=1, le=100)] = 70
    """Percent of the requested CPU that the autoscaler aims at."""


@rules(
    Rule(
        "[has(self.model), has(self.static), has(self.lastAnswer)].filter(x, x).size() == 1",
        "a fallback step is one thing: set exactly one of model, static and lastAnswer",
        check=lambda step: sum(kind is not None for kind in (step.model, step.static, step.last_answer)) == 1,
    ),
    Rule(
        f"!has(self.model) || self.model.modelFormat in {list(IN_ROUTER)}",
        f"a fallback model runs inside the router, which has {', '.join(IN_ROUTER)}: convert it to ONNX",
        ".model",
        lambda step: step.model is None or step.model.model_format in IN_ROUTER,
    ),
)
class FallbackStep(StepOptions):
    """What answers when the steps before it do not."""

    name: DNSLabel
    """Name of the step, shown in the response header and in metrics."""
    reserve: PositiveDuration | None = None
    """Time of a request's deadline that the steps before leave to this one; they leave a tenth of what is left anyway,
    and never more than half."""
    model: ModelSource | None = None
    """A smaller model, run inside the router so that it shares no fate with the primary's pods."""
    static: StaticResponse | None = None
    """A fixed answer."""
    last_answer: LastAnswer | None = None
    """The last answer that the same request was given."""


class Router(PodOptions):
    """The pods that answer the service's address."""

    replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    """Router pods, spread over zones."""


@rules(
    Rule(
        "!has(self.fallback) || self.fallback.all(s, !(s.name in ['predictor', 'canary', 'shadow']))",
        "the names predictor, canary and shadow have a meaning: give the fallback step another name",
        ".fallback",
        lambda spec: all(step.name not in ("predictor", "canary", "shadow") for step in spec.fallback),
    ),
    Rule(
        "!has(self.fallback) || self.fallback.size() < 2 || "
        "!self.fallback.exists(s, has(s.static)) || has(self.fallback[self.fallback.size() - 1].static)",
        "a static response never fails, so no step after it is ever asked: put it last",
        ".fallback",
        _fallback_order,
    ),
    Rule(
        "!has(self.canary) || self.predictor.inference == 'Remote'",
        "a canary stands beside pods of the predictor: set predictor.inference: Remote, or remove canary",
        ".canary",
        lambda spec: spec.canary is None or spec.predictor.inference == "Remote",
    ),
    Rule(
        "has(self.predictor.model) || !has(self.shadow) && !(has(self.canary) && has(self.canary.model))",
        "a canary's or a shadow's model stands beside a model of the predictor: set predictor.model, or canary.image",
        ".predictor",
        lambda spec: (
            spec.predictor.model is not None
            or (spec.shadow is None and (spec.canary is None or spec.canary.model is None))
        ),
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
    request_log: RequestLog | None = None
    """Keeps a sample of requests and answers; by default nothing is kept."""
    canary: Canary | None = None
    """A change of the predictor that a growing part of the requests tries first."""
    shadow: Shadow | None = None
    """A second model that gets a copy of the requests and whose answers are compared."""
    timeout: PositiveDuration | None = None
    """Time for the whole answer, all steps together; a caller's own shorter time goes before it. By default the sum of
    the steps' timeouts."""
    allocation: Allocation | None = None
    """Who is in which arm, while there is more than one."""
