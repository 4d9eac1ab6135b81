"""The API: one model file per kind, the single source of the CRDs, of validation and of the SDK's types."""

from headrace.api.featureset import FeatureSet
from headrace.api.inferenceservice import InferenceService
from headrace.api.meta import Resource
from headrace.api.trainingjob import TrainingJob

KINDS: tuple[type[Resource], ...] = (FeatureSet, InferenceService, TrainingJob)

__all__ = ["KINDS", "FeatureSet", "InferenceService", "Resource", "TrainingJob"]
