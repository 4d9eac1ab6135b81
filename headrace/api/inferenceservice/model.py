"""Where a model comes from, and what it is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headrace.api.meta import KeyReference, LocalReference
from headrace.api.schema import LIST_ATOMIC, Model, PositiveDuration, Rule, StorageURI, remedy, rules
from headrace.api.trainingjob.sources import GitSource

IN_ROUTER = ("ONNX", "XGBoost", "LightGBM", "ScikitLearn")
"""Formats that every serving image runs, and so a router itself."""
ModelFormat = Literal["ONNX", "XGBoost", "LightGBM", "ScikitLearn", "PyTorch", "PMML", "Python"]


@rules(
    Rule(
        "has(self.configMap) != has(self.git)",
        "code: set exactly one of configMap and git",
        check=lambda code: (code.config_map is None) != (code.git is None),
    )
)
class PredictorCode(Model):
    """A Python file with a class of your own: load(folder), which is optional, and predict(inputs) -> outputs."""

    config_map: KeyReference | None = None
    """The file is a key of a ConfigMap."""
    git: GitSource | None = None
    """The file is in a git repository, cloned before the predictor starts; files beside it can be imported."""
    class_name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            max_length=253,
            json_schema_extra=remedy(
                "self.matches('^[A-Za-z_][A-Za-z0-9_]*$')", "write the name of a Python class such as Predictor"
            ),
        ),
    ] = "Predictor"
    """Name of the class."""


@rules(
    Rule(
        "has(self.version) != has(self.alias)",
        "registry: set exactly one of version and alias",
        check=lambda registry: (registry.version is None) != (registry.alias is None),
    )
)
class RegisteredModelReference(Model):
    """A version of a model in an MLflow registry."""

    tracking_uri: Annotated[
        str,
        Field(
            pattern=r"^https?://[^\s]+$",
            max_length=1024,
            json_schema_extra=remedy(
                r"self.matches(r'^https?://[^\s]+$')", "write MLflow's address such as http://mlflow.ml.svc:5000"
            ),
        ),
    ]
    """Address of the MLflow server."""
    model: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the registered model."""
    version: (
        Annotated[
            str,
            Field(
                pattern=r"^[1-9][0-9]*$",
                max_length=18,
                json_schema_extra=remedy("self.matches('^[1-9][0-9]*$')", "write a version such as '3'"),
            ),
        ]
        | None
    ) = None
    """One version for good."""
    alias: (
        Annotated[
            str,
            Field(
                pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
                max_length=255,
                json_schema_extra=remedy(
                    "self.matches('^[A-Za-z][A-Za-z0-9_-]*$')",
                    "write an alias of letters, digits, '_' and '-' that begins with a letter, such as champion",
                ),
            ),
        ]
        | None
    ) = None
    """The version that the alias names when a pod starts."""
    secret_ref: LocalReference | None = None
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."""


class Batching(Model):
    """Requests that come within a moment of each other run as one."""

    max_size: Annotated[int, Field(ge=2, le=65_536)] = 32
    """Rows of a batch; when as many are together they run at once."""
    max_latency: PositiveDuration = "5ms"
    """Time that a request waits for others at most."""


_SOURCES = "[has(self.storageUri), has(self.registry), has(self.trainingJobRef)].filter(x, x).size()"


def _sources(model: ModelSource) -> int:
    return sum(source is not None for source in (model.storage_uri, model.registry, model.training_job_ref))


@rules(
    Rule(
        f"{_SOURCES} == 1 || (self.modelFormat == 'Python' && {_SOURCES} == 0)",
        "set exactly one of storageUri, registry and trainingJobRef (Python code may do without)",
        check=lambda model: _sources(model) == 1 or (model.model_format == "Python" and _sources(model) == 0),
    ),
    Rule(
        "(self.modelFormat == 'Python') == has(self.code)",
        "code goes with modelFormat: Python, and Python needs code",
        ".code",
        lambda model: (model.model_format == "Python") == (model.code is not None),
    ),
    Rule(
        "!has(self.trustedTypes) || self.trustedTypes.size() == 0 || self.modelFormat == 'ScikitLearn'",
        "trustedTypes are those of a skops file: set modelFormat: ScikitLearn, or leave them out",
        ".trustedTypes",
        lambda model: not model.trusted_types or model.model_format == "ScikitLearn",
    ),
)
class ModelSource(Model):
    """A model: its format, and where it is."""

    model_format: ModelFormat = "ONNX"
    """Format of the model file. ONNX; XGBoost: UBJSON or JSON; LightGBM: text; ScikitLearn: skops; PyTorch:
    torch.export (.pt2); PMML; Python: a class of your own, see code."""
    storage_uri: StorageURI | None = None
    """The model file, or a folder with one: model.onnx, model.ubj, model.json, model.txt, model.skops, model.pt2,
    model.pmml."""
    registry: RegisteredModelReference | None = None
    """A version in an MLflow registry."""
    training_job_ref: LocalReference | None = None
    """A TrainingJob of this namespace: its model, once it has succeeded."""
    secret_ref: LocalReference | None = None
    """Secret with storage credentials, as in a TrainingJob's storage.secretRef; by default the embedded store's."""
    code: PredictorCode | None = None
    """Your own class; only with modelFormat Python."""
    trusted_types: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=253)]],
        Field(max_length=64, json_schema_extra=LIST_ATOMIC),
    ] = Field(default_factory=list)
    """Types of a skops file to take besides those known to be harmless, by full name such as
    sklearn.neighbors._kd_tree.KDTree."""
