"""Float32 values in bfloat16 parameters: rounded at random, or split without loss."""

from __future__ import annotations

import torch
from torch import Tensor

# Masks over two float32 bit patterns in one 64-bit integer: the halves that bfloat16 drops, and those it keeps.
_LOWER = 0x0000FFFF0000FFFF
_UPPER = ~_LOWER


def round_at_random(values: Tensor, seed: int) -> Tensor:
    """Round float32 values [N] to neighbours that bfloat16 has, so that the mean of the result is the value.

    A uniform 16-bit integer is added to the bit pattern and the low half is dropped: the chance of
    the neighbour further from zero is the share of the way to it. Values that bfloat16 has stay.

    Args:
        values: Finite float32 values, contiguous; used up.
        seed: The same seed gives the same rounding on the same kind of device.

    Returns:
        The rounded values [N], still float32: bfloat16 takes them as they are.
    """
    count = values.numel()
    padded = values if count % 4 == 0 else torch.nn.functional.pad(values, (0, -count % 4))
    # Two patterns in each integer: a finite pattern and 16 bits do not carry into the neighbour. One draw serves
    # four values; drawing is the dearest part on a CPU.
    first, second = padded.view(torch.int64).chunk(2)
    generator = torch.Generator(values.device).manual_seed(seed)
    draws = torch.empty_like(first).random_(-(2**63), None, generator=generator)
    first.add_(draws.bitwise_and(_LOWER)).bitwise_and_(_UPPER)
    second.add_(draws.bitwise_right_shift_(16).bitwise_and_(_LOWER)).bitwise_and_(_UPPER)
    return padded[:count]


def split_exactly(values: Tensor) -> tuple[Tensor, Tensor]:
    """Take float32 values apart into the nearest bfloat16 (halves away from zero) and what is left.

    The two together are as large as the value and give it back bit for bit (`join_exactly`).

    Args:
        values: Finite float32 values, contiguous; used up.

    Returns:
        Values [N] in bfloat16, and the rest of the bit patterns [N] in int16.
    """
    pattern = values.view(torch.int32)
    rest = pattern.to(torch.int16)  # wraps: the low half read as -32768 ... 32767
    pattern.sub_(rest)
    return values.to(torch.bfloat16), rest


def join_exactly(rounded: Tensor, rest: Tensor) -> Tensor:
    """The float32 values that `split_exactly` took apart.

    Args:
        rounded: [N] of bfloat16, or of float32 values that bfloat16 has (used up then).
        rest: [N] of int16.
    """
    values = rounded.float()
    values.view(torch.int32).add_(rest)
    return values
