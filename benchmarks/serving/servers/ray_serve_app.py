"""Ray Serve with the model in one replica: `python ray_serve_app.py MODEL PORT`, in its own environment."""

import signal
import sys

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Onnx:
    def __init__(self, model: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    async def __call__(self, request: Request) -> dict:
        tensor = (await request.json())["inputs"][0]
        x = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        (y,) = self._session.run(["probabilities"], {"x": x})
        output = {"name": "probabilities", "datatype": "FP32", "shape": list(y.shape), "data": y.ravel().tolist()}
        return {"model_name": "bench", "outputs": [output]}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _metrics_export_port=None)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Onnx.bind(sys.argv[1]), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
