"""Named random streams: a draw depends only on (seed, stream, number).

Nothing is saved and nothing is advanced, so resuming, accumulating, validating in between or using
more processes cannot change what a sample draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simpletuner.runtime.seeds import stream_seed


def stream_generator(seed: int, stream: str, number: int) -> torch.Generator:
    """A CPU generator for draw `number` of `stream`."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, number))


def draw_normal(shape: Sequence[int], seed: int, stream: str, numbers: Sequence[int]) -> Tensor:
    """Standard normal values [len(numbers), *shape], float32 on the CPU, one stream draw per row."""
    rows = torch.empty(len(numbers), *shape)
    for row, number in zip(rows, numbers, strict=True):
        row.normal_(generator=stream_generator(seed, stream, number))
    return rows


def draw_uniform(seed: int, stream: str, numbers: Sequence[int]) -> Tensor:
    """Values [len(numbers)] in [0, 1), float32 on the CPU, one stream draw each."""
    return torch.stack([torch.rand((), generator=stream_generator(seed, stream, number)) for number in numbers])
