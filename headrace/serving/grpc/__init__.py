"""The Open Inference Protocol v2 over gRPC, in front of the same endpoints as REST."""
