"""One answer before the first request, so that it does not pay for memory, kernels and imports."""

from __future__ import annotations

import logging

import numpy as np

from headrace.serving.models.base import Model, ModelError, one_line
from headrace.serving.tensors import DTYPES, Array, RequestError

log = logging.getLogger(__name__)


def warm(model: Model) -> None:
    """Run the model once on zeros and empty texts; unknown dimensions are 1.

    Raises:
        ModelError: it fails on an input whose shape it fixes itself.
    """
    if not model.inputs:
        return
    feeds: dict[str, Array] = {}
    for spec in model.inputs:
        shape = [1 if size < 0 else size for size in spec.shape]
        feeds[spec.name] = (
            np.full(shape, b"", dtype=object)
            if spec.datatype == "BYTES"
            else np.zeros(shape, dtype=DTYPES[spec.datatype])
        )
    try:
        model.run(feeds, model.output_names)
    except RequestError:
        # A model may refuse the made-up sizes (a dimension that must be a multiple of 8, say); real ones will tell.
        return
    except Exception as error:
        if all(size >= 0 for spec in model.inputs for size in spec.shape):
            raise ModelError(f"fails on an input of zeros: {one_line(error)}") from error
        log.info("the model does not take an input of zeros", extra={"fields": {"reason": one_line(error)}})
