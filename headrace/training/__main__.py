"""`python -m headrace.training classifier`: one worker of a built-in trainer.

Exit codes: 0 finished; 1 failed, another attempt may do better; 78 the configuration or the data cannot work; 143 told
to stop. The last line on standard error says why, for the pod's termination message.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError

from headrace.api.schema import Model
from headrace.api.trainingjob import ClassifierTrainer
from headrace.storage import StorageError
from headrace.training.classic import TRAINERS, train
from headrace.training.errors import EXIT_CONFIGURATION, EXIT_FAILED, ConfigurationError, Interrupted

logger = logging.getLogger("headrace.training")

VARIABLE = "HEADRACE_CLASSIFIER"
CLASSIC_VARIABLE = "HEADRACE_TRAINER"

T = TypeVar("T", bound=Model)


def trainer_from(variables: Mapping[str, str]) -> ClassifierTrainer:
    """The classifier that HEADRACE_CLASSIFIER describes.

    Raises:
        ConfigurationError: it is not set or not a valid one.
    """
    return _settings(variables, VARIABLE, ClassifierTrainer, "classifier")


def _settings(variables: Mapping[str, str], variable: str, model: type[T], field: str) -> T:
    text = variables.get(variable, "")
    if not text:
        raise ConfigurationError(variable, "not set", f"set it to the JSON of a TrainingJob's spec.{field}")
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"])) or variable
        problem = first["msg"].removeprefix("Value error, ").removeprefix(f"{path}: ")
        raise ConfigurationError(
            path, f"{first.get('input')!r:.100}: {problem}", f"correct spec.{field} of the TrainingJob"
        ) from error


def _train(name: str) -> None:
    if name == "classifier":
        from headrace.training.classifier import train_classifier

        train_classifier(trainer_from(os.environ))
        return
    train(_settings(os.environ, CLASSIC_VARIABLE, TRAINERS[name][0], name))


def main(arguments: Sequence[str]) -> int:
    """Run one worker and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m headrace.training", description=__doc__)
    parser.add_argument(
        "trainer",
        choices=["classifier", *TRAINERS],
        help=f"what to run; the settings of the classifier come in {VARIABLE}, of the others in {CLASSIC_VARIABLE}",
    )
    name = parser.parse_args(arguments).trainer
    # PID 1 of a container ignores SIGTERM unless it says otherwise.
    signal.signal(signal.SIGTERM, _interrupt)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    try:
        _train(name)
    except Interrupted as stop:
        return _last_line("told to stop before the work was done", int(str(stop.code)))
    except ConfigurationError as error:
        return _last_line(str(error), EXIT_CONFIGURATION)
    except StorageError as error:
        return _last_line(str(error), EXIT_FAILED if error.retryable else EXIT_CONFIGURATION)
    except Exception as error:
        logger.exception("training failed")
        rank = os.environ.get("RANK", "0")
        summary = " ".join(str(error).split())[:300]
        return _last_line(f"worker {rank} failed: {type(error).__name__}: {summary}", EXIT_FAILED)
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted


def _last_line(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the pod's termination message
    return code


def _exit(code: int) -> None:
    """End the process at once when it failed: destructors of a broken process group may wait for peers."""
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    if code:
        os._exit(code)
    sys.exit(0)


if __name__ == "__main__":
    _exit(main(sys.argv[1:]))
