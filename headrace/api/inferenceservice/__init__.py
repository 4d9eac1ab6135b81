"""InferenceService: a model behind one address, with an ordered chain of fallbacks."""

from headrace.api.inferenceservice.kind import MAX_NAME_LENGTH, InferenceService
from headrace.api.inferenceservice.model import (
    Batching,
    ModelFormat,
    ModelSource,
    PredictorCode,
    RegisteredModelReference,
)
from headrace.api.inferenceservice.options import (
    CircuitBreaker,
    FallbackReason,
    OutlierDetection,
    RemoteOptions,
    StepOptions,
)
from headrace.api.inferenceservice.request_log import RequestLog
from headrace.api.inferenceservice.spec import CustomContainer, FallbackStep, InferenceServiceSpec, Predictor, Router
from headrace.api.inferenceservice.static import LastAnswer, StaticResponse, Tensor
from headrace.api.inferenceservice.status import InferenceServiceStatus, ReplicaCounts, ResolvedModel, StepStatus

__all__ = [
    "MAX_NAME_LENGTH",
    "Batching",
    "CircuitBreaker",
    "CustomContainer",
    "FallbackReason",
    "FallbackStep",
    "InferenceService",
    "InferenceServiceSpec",
    "InferenceServiceStatus",
    "LastAnswer",
    "ModelFormat",
    "ModelSource",
    "OutlierDetection",
    "Predictor",
    "PredictorCode",
    "RegisteredModelReference",
    "RemoteOptions",
    "ReplicaCounts",
    "RequestLog",
    "ResolvedModel",
    "Router",
    "StaticResponse",
    "StepOptions",
    "StepStatus",
    "Tensor",
]
