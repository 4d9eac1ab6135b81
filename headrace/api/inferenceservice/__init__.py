"""InferenceService: a model behind one address, with an ordered chain of fallbacks."""

from headrace.api.inferenceservice.kind import MAX_NAME_LENGTH, InferenceService
from headrace.api.inferenceservice.model import ModelFormat, ModelSource, PredictorCode, RegisteredModelReference
from headrace.api.inferenceservice.options import CircuitBreaker, StepOptions
from headrace.api.inferenceservice.spec import CustomContainer, FallbackStep, InferenceServiceSpec, Predictor, Router
from headrace.api.inferenceservice.static import StaticResponse, Tensor
from headrace.api.inferenceservice.status import InferenceServiceStatus, ReplicaCounts, ResolvedModel, StepStatus

__all__ = [
    "MAX_NAME_LENGTH",
    "CircuitBreaker",
    "CustomContainer",
    "FallbackStep",
    "InferenceService",
    "InferenceServiceSpec",
    "InferenceServiceStatus",
    "ModelFormat",
    "ModelSource",
    "Predictor",
    "PredictorCode",
    "RegisteredModelReference",
    "ReplicaCounts",
    "ResolvedModel",
    "Router",
    "StaticResponse",
    "StepOptions",
    "StepStatus",
    "Tensor",
]
