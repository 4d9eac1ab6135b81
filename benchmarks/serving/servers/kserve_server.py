"""KServe's Python server with the model in it: `python kserve_server.py MODEL PORT`, in its own environment."""

import sys

import kserve
import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse


class Onnx(kserve.Model):
    def __init__(self, model: str) -> None:
        super().__init__("bench")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload: InferRequest, headers: dict | None = None) -> InferResponse:
        x = payload.inputs[0].as_numpy()
        (y,) = self._session.run(["probabilities"], {"x": x})
        output = InferOutput("probabilities", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=False)
        return InferResponse(response_id=payload.id or "", model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    port = int(sys.argv[2])
    kserve.ModelServer(http_port=port, enable_grpc=False, workers=1, access_log_format=None).start([Onnx(sys.argv[1])])
