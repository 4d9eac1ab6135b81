"""What the pods of a FeatureSet are told: a file with the FeatureSet, as its ConfigMap mounts it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from headrace.api.featureset.served import ServedFeatureSet
from headrace.training.errors import ConfigurationError


def read(file: Path) -> ServedFeatureSet:
    """The FeatureSet in a file.

    Raises:
        ConfigurationError: The file is missing or has none.
    """
    try:
        return ServedFeatureSet.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(str(file), str(error.strerror), "mount the FeatureSet's ConfigMap there") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(str(file), f"{where}: {first['msg']}", "correct the FeatureSet") from error
