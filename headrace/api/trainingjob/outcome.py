"""What must hold of a trained model, and where it is registered."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headrace.api.meta import LocalReference
from headrace.api.schema import Model, Rule, remedy, rules

_URL = r"^https?://[^\s/]+(/[^\s]*)?$"


@rules(
    Rule(
        "has(self.min) || has(self.max)",
        "evaluation: set min (the metric may not be below), max (it may not be above), or both",
        check=lambda gate: gate.min is not None or gate.max is not None,
    ),
    Rule(
        "!has(self.min) || !has(self.max) || self.min <= self.max",
        "evaluation: min is above max, so no model can pass: exchange them",
        check=lambda gate: gate.min is None or gate.max is None or gate.min <= gate.max,
    ),
)
class Evaluation(Model):
    """What a trained model must be worth; a run that misses it fails with reason GateNotMet and publishes nothing."""

    metric: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of a final metric, such as accuracy, f1 or auc."""
    min: float | None = None
    """Least value that passes."""
    max: float | None = None
    """Greatest value that passes."""


class Registry(Model):
    """An MLflow server that keeps parameters, metrics and artifacts of the run and registers its model."""

    tracking_uri: Annotated[
        str,
        Field(
            pattern=_URL,
            max_length=1024,
            json_schema_extra=remedy(
                f"self.matches(r'{_URL}')",
                "write the address of an MLflow server such as http://mlflow.mlflow.svc:5000",
            ),
        ),
    ]
    """Address of the MLflow server."""
    model: Annotated[
        str,
        Field(
            pattern=r"^[^/:.%\"']+$",
            min_length=1,
            max_length=253,
            json_schema_extra=remedy(
                "self.matches('^[^/:.%\"\\']+$')", "write a model's name without / : . % and quotation marks"
            ),
        ),
    ]
    """Name under which the model is registered; each run that succeeds adds a version."""
    alias: (
        Annotated[
            str,
            Field(
                pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$",
                max_length=253,
                json_schema_extra=remedy(
                    "self.matches('^[A-Za-z_][A-Za-z0-9_-]*$')",
                    "write an alias of letters, digits, '_' and '-' that begins with a letter, such as champion",
                ),
            ),
        ]
        | None
    ) = None
    """Alias that the new version gets, such as champion."""
    experiment: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Experiment that the run belongs to; by default the job's name."""
    secret_ref: LocalReference | None = None
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."""
