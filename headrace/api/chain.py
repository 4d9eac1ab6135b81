"""What a router executes: the chain of an InferenceService as its ConfigMap carries it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headrace.api.counts import TrafficReport
from headrace.api.inferenceservice import FallbackStep, ModelSource, RemoteOptions, RequestLog, StepStatus
from headrace.api.schema import DNSLabel, Model, PositiveDuration

PREDICTOR = "predictor"
"""Name of the primary step in status, headers and metrics."""
HTTP_PORT = 8080
"""Port of routers and predictors: the Open Inference Protocol, health and metrics."""
GRPC_PORT = 9000
"""Port of routers, and of a service's address: the Open Inference Protocol over gRPC."""
CHAIN_FILE = "chain.json"
"""Key of the ConfigMap, and name of the mounted file."""
STEP_HEADER = "headrace-step"
"""Response header: the step that answered."""
REASON_HEADER = "headrace-fallback-reason"
"""Response header: `<step>=<reason>` of each step that did not answer, comma-separated, in order."""


class RemotePredictor(RemoteOptions):
    """The primary's replicas and how they are asked."""

    host: Annotated[str, Field(min_length=1, max_length=253)]
    """Headless DNS name; each of its addresses is one replica."""
    port: Annotated[int, Field(ge=1, le=65535)] = HTTP_PORT
    """Port of the replicas."""
    model_name: str = ""
    """Name of the model in the replicas' paths; empty for the service's."""
    model: ModelSource | None = None
    """The model, where the router runs it itself; host then means nothing."""


class Chain(Model):
    """The steps of one service in order: the predictor, then the fallbacks."""

    name: DNSLabel
    """Name of the service and of its model in the Open Inference Protocol."""
    namespace: DNSLabel
    """Namespace of the service."""
    predictor: RemotePredictor
    """The primary."""
    timeout: PositiveDuration | None = None
    """Time for the whole answer."""
    fallback: list[FallbackStep] = Field(default_factory=list)
    """What is asked after it, in order."""
    request_log: RequestLog | None = None
    """What is kept of requests and answers, with the folder."""


class RouterReport(Model):
    """What a router says about itself in the annotation headrace.dev/report of its pod."""

    answering: str = ""
    """The step that is asked first now; empty when none can answer."""
    steps: list[StepStatus] = Field(default_factory=list)
    """Every step in order."""
    traffic: TrafficReport | None = None
    """What it counted since it was last told where requests go beside the chain."""
