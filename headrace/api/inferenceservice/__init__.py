"""InferenceService: a model behind one address, with an ordered chain of fallbacks."""

from headrace.api.inferenceservice.kind import MAX_NAME_LENGTH, InferenceService
from headrace.api.inferenceservice.model import ModelSource
from headrace.api.inferenceservice.options import CircuitBreaker, StepOptions
from headrace.api.inferenceservice.spec import FallbackStep, InferenceServiceSpec, Predictor, Router
from headrace.api.inferenceservice.static import StaticResponse, Tensor
from headrace.api.inferenceservice.status import InferenceServiceStatus, ReplicaCounts, StepStatus

__all__ = [
    "MAX_NAME_LENGTH",
    "CircuitBreaker",
    "FallbackStep",
    "InferenceService",
    "InferenceServiceSpec",
    "InferenceServiceStatus",
    "ModelSource",
    "Predictor",
    "ReplicaCounts",
    "Router",
    "StaticResponse",
    "StepOptions",
    "StepStatus",
    "Tensor",
]
