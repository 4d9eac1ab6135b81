"""Looking at the weights of a run without taking part in it: for evaluation while it goes on, and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.training.parameter_server.compression import Plain
from headrace.training.parameter_server.layout import Shard, digest, shards
from headrace.training.parameter_server.link import Link, Patience
from headrace.training.parameter_server.wire import Kind


class Parameters:
    """The parameters of a model as the servers hold them: end to end, cut into one vector per server.

    Args:
        model: The torch module; what requires no gradient, and buffers, are its own affair.
        servers: Number of servers.
        fingerprint: Of the settings that the weights depend on.

    Attributes:
        tensors: The parameters.
        shards: What each server holds.
        digest: Equal for equal models, cuts and settings.
    """

    def __init__(self, model: Any, servers: int, fingerprint: str = "") -> None:
        named = [(name, item) for name, item in model.named_parameters() if item.requires_grad]
        self.tensors = [item for _, item in named]
        shapes = [tuple(item.shape) for item in self.tensors]
        self.shards = shards(shapes, servers)
        self.digest = digest(shapes, [*(name for name, _ in named), fingerprint], servers)

    def add(self, tensors: Sequence[Any], shard: Shard, vector: Any) -> None:
        """Add one tensor per parameter (or None) to a server's vector."""
        start = 0
        for piece in shard.pieces:
            tensor = tensors[piece.tensor]
            if tensor is not None:
                rows = tensor.detach().reshape(-1, piece.columns)[piece.start : piece.stop]
                vector[start : start + piece.size].add_(rows.reshape(-1))
            start += piece.size

    def put(self, shard: Shard, vector: Any) -> None:
        """Put a server's vector into the model."""
        start = 0
        for piece in shard.pieces:
            rows = self.tensors[piece.tensor].data.view(-1, piece.columns)[piece.start : piece.stop]
            rows.copy_(vector[start : start + piece.size].view(piece.rows, piece.columns))
            start += piece.size


class Observer:
    """Somebody who only looks.

    Args:
        addresses: `host:port` of each server, in the order of their numbers.
        model: A module like the one that is trained, which takes the weights.
        run_id, fingerprint: Those of the workers.
        patience: How long a server may be away; by default a minute.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        model: Any,
        *,
        run_id: str = "",
        fingerprint: str = "",
        patience: Patience | None = None,
    ) -> None:
        self._parameters = Parameters(model, len(addresses), fingerprint)
        identity = {"run": run_id, "model": self._parameters.digest, "rank": None}

        def link(address: str, shard: Shard) -> Link:
            hello = identity | {"matrices": shard.matrices}
            return Link(address, shard, lambda: hello, patience or Patience(60.0, lambda: False))

        self._links = [link(*pair) for pair in zip(addresses, self._parameters.shards, strict=True)]

    def pull(self) -> int:
        """Put the weights as they are into the model, and return the first server's version; 0 before there are any.

        Raises:
            ServerLost, ConfigurationError: as for a worker.
        """
        versions: list[int] = []
        for link in self._links:
            answer = link.ask(Kind.EXCHANGE, {"push": False, "pull": True})
            self._parameters.put(link.shard, Plain(link.shard.size).decode(answer.payload))
            versions.append(int(answer.header["version"]))
        return versions[0]

    def close(self) -> None:
        """Leave."""
        for link in self._links:
            link.close()
