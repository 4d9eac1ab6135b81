"""The Headrace operator: `python operator` runs it. A new kind is one more line in `controllers`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

import uvloop
from app import Operator
from settings import OperatorSettings, environment_settings

from controllers.featureset.controller import FeatureSetController
from controllers.inferenceservice.controller import InferenceServiceController
from controllers.runtime.controller import Controller
from controllers.runtime.logs import configure_logging
from controllers.trainingjob.controller import TrainingJobController


def controllers(settings: OperatorSettings) -> Sequence[Controller[Any, Any]]:
    """Every kind that the operator runs."""
    return [
        TrainingJobController(settings.installation),
        InferenceServiceController(settings.installation),
        FeatureSetController(settings.installation),
    ]


def main() -> int:
    """Run until a signal or a failure; returns the exit code."""
    settings = environment_settings(sys.argv[1:])
    configure_logging(settings.log_level, settings.log_format)

    async def run() -> int:
        return await Operator(settings, controllers(settings)).run()

    # What was imported stays for good: the garbage collector need not walk through it again and again.
    gc.collect()
    gc.freeze()
    return uvloop.run(run())


if __name__ == "__main__":
    sys.exit(main())
