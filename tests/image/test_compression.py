"""What is promised of compressed gradients: both ends agree, nothing is lost for good, nothing is biased."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.api.trainingjob import Compression
from headrace.training.parameter_server.compression import codec
from headrace.training.parameter_server.layout import Shard, shards

SHAPES = [(48, 40), (48,), (10, 48), (3,)]
KINDS = [
    Compression(),
    Compression(type="FP16"),
    Compression(type="Int8"),
    Compression(type="TopK", ratio=0.05),
    Compression(type="PowerSGD", rank=3),
]


def shard() -> Shard:
    return shards(SHAPES, 1)[0]


def gradient(seed: int) -> Any:
    import torch

    return torch.randn(shard().size, generator=torch.Generator().manual_seed(seed))


def sent(coder: Any, vector: Any) -> tuple[bytes, Any]:
    buffers, made = coder.encode(vector)
    return b"".join(bytes(part) for part in buffers), made


def received(kind: Compression, payload: bytes) -> Any:
    return codec(kind, shard()).decode(bytearray(payload))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.type)
def test_the_server_decodes_what_the_worker_meant(kind: Compression) -> None:
    import torch

    payload, made = sent(codec(kind, shard()), gradient(0))
    torch.testing.assert_close(received(kind, payload), made, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (KINDS[0], 4 * 2451),
        (KINDS[1], 4 + 2 * 2451),
        (KINDS[2], 4 * 2 + 2451),  # two blocks of at most 2048 values
        (KINDS[3], 8 * 123),  # 5% of 2451 values, rounded up
        (KINDS[4], 4 * (3 * (48 + 40) + 48 + 3 * (10 + 48) + 3)),
    ],
    ids=lambda value: value.type if isinstance(value, Compression) else str(value),
)
def test_a_payload_has_the_size_that_the_docs_say(kind: Compression, size: int) -> None:
    assert len(sent(codec(kind, shard()), gradient(0))[0]) == size


@pytest.mark.parametrize("kind", KINDS[3:], ids=lambda kind: kind.type)
def test_what_is_left_out_is_sent_later(kind: Compression) -> None:
    """Error feedback: the sum of all that was sent stays near the sum of all gradients, and reaches it in the end."""
    coder, total, arrived = codec(kind, shard()), gradient(0) * 0, gradient(0) * 0
    left = []
    for step in range(200):
        total += gradient(step % 4)
        arrived += sent(coder, gradient(step % 4))[1]
        left.append(float((total - arrived).norm()))
    assert max(left[100:]) < 1.2 * max(left[:100]), "the rest does not grow"
    for _ in range(400):
        arrived += sent(coder, gradient(0) * 0)[1]
    assert float((total - arrived).norm()) < 0.01 * left[-1], "and goes to nothing when no more comes"


def test_the_largest_values_are_sent() -> None:
    vector = gradient(1)
    made = sent(codec(KINDS[3], shard()), vector)[1]
    smallest_sent = float(vector[made != 0].abs().min())
    assert float(vector[made == 0].abs().max()) <= smallest_sent


def test_random_rounding_keeps_the_mean() -> None:
    import torch

    vector = gradient(2)
    mean = torch.stack([sent(codec(KINDS[2], shard()), vector)[1] for _ in range(400)]).mean(0)
    step = float(vector.abs().max()) / 127
    # Rounding up with probability p has the variance p(1-p) <= 1/4: 5 standard errors of the mean of 400.
    assert float((mean - vector).abs().max()) < 5 * step * 0.5 / 20


def test_a_matrix_of_the_rank_is_sent_exactly() -> None:
    import torch

    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(48, 2, generator=generator) @ torch.randn(2, 40, generator=generator)
    vector = gradient(3)
    vector[: 48 * 40] = matrix.reshape(-1)
    made = sent(codec(Compression(type="PowerSGD", rank=2), shard()), vector)[1]
    torch.testing.assert_close(made[: 48 * 40].view(48, 40), matrix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.type)
def test_a_payload_of_another_size_is_refused(kind: Compression) -> None:
    payload, _ = sent(codec(kind, shard()), gradient(0))
    with pytest.raises(ValueError, match="bytes where"):
        received(kind, payload[:-4])


def test_a_position_outside_of_the_shard_is_refused() -> None:
    import numpy as np

    payload = bytearray(sent(codec(KINDS[3], shard()), gradient(0))[0])
    payload[:4] = np.int32(2451).tobytes()
    with pytest.raises(ValueError, match="outside"):
        received(KINDS[3], bytes(payload))
