"""BentoML with the model in a service: `python -m bentoml serve bentoml_service:Onnx`, in its own environment."""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, traffic={"timeout": 10}, metrics={"enabled": True})
class Onnx:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api
    async def predict(self, x: np.ndarray) -> np.ndarray:
        (y,) = self._session.run(["probabilities"], {"x": x.astype(np.float32)})
        return y
