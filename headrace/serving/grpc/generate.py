"""Write inference.binpb from inference.proto: ``python -m headrace.serving.grpc.generate``.

The file is the protocol buffer compiler's description of the messages. It holds no code, so it does not change with
the version of the compiler, and a test compares it with what the locked compiler makes of inference.proto.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from grpc_tools import protoc

from headrace.serving.grpc.wire import DESCRIPTORS

PROTO = Path(__file__).with_name("inference.proto")


def compiled() -> bytes:
    """What the compiler makes of inference.proto.

    Raises:
        RuntimeError: the compiler refuses it; its standard error says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / DESCRIPTORS.name
        code = protoc.main(["protoc", f"--proto_path={PROTO.parent}", f"--descriptor_set_out={out}", PROTO.name])
        if code != 0:
            raise RuntimeError(f"protoc refuses {PROTO} with exit code {code}")
        return out.read_bytes()


if __name__ == "__main__":
    DESCRIPTORS.write_bytes(compiled())
