"""The limit: an ONNX Runtime call in the barest server that still reads and answers the protocol's JSON.

No limits, no errors, no threads, one model: what any server of this model in Python must do at the least.
`python -m benchmarks.serving.servers.bare MODEL PORT`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import numpy as np
import onnxruntime as ort
import orjson
import uvloop


class _Bare(asyncio.Protocol):
    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        answer = b"{}"
        if body:
            tensor = orjson.loads(body)["inputs"][0]
            x = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
            (y,) = self._session.run(["probabilities"], {"x": x})
            output = {"name": "probabilities", "datatype": "FP32", "shape": y.shape, "data": y.ravel().tolist()}
            answer = orjson.dumps({"model_name": "bench", "outputs": [output]})
        if self._transport is not None:
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(answer), answer)
            )


async def serve(model: str, port: int) -> None:
    """Serve until ended."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    server = await asyncio.get_running_loop().create_server(lambda: _Bare(session), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
