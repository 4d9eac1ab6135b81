"""MLServer with the model as a custom runtime: `python mlserver_server.py MODEL PORT`, in its own environment."""

import asyncio
import os
import sys

import onnxruntime as ort
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        (y,) = self._session.run(["probabilities"], {"x": x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", y)])


async def main() -> None:
    os.environ["BENCH_MODEL"] = sys.argv[1]
    # No workers beside the server: for a small model they cost more than they do.
    settings = Settings(
        host="127.0.0.1",
        http_port=int(sys.argv[2]),
        grpc_port=int(sys.argv[2]) + 1,
        metrics_port=int(sys.argv[2]) + 2,
        parallel_workers=0,
        debug=False,
        logging_settings=None,
    )
    server = MLServer(settings)
    await server.start([ModelSettings(name="bench", implementation=Onnx)])


if __name__ == "__main__":
    asyncio.run(main())
