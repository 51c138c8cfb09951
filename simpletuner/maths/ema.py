"""Exponential moving averages: which memory a step has, and the update. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decay_at(updates: int, decay: float, warmup_updates: int = 0) -> float:
    """Memory of update number `updates` (from 0).

    Without a warm-up the memory rises as min(decay, (1 + n) / (10 + n)) with n = updates - 1, so that
    early weights are forgotten; the first update copies. With a warm-up it is 0 (copies) for that
    many updates and `decay` afterwards.

    Args:
        updates: Updates done before this one.
        decay: Memory in the long run, in [0, 1).
        warmup_updates: Updates that only copy; 0 means the rise above.
    """
    if warmup_updates:
        return 0.0 if updates < warmup_updates else decay
    done = updates - 1
    return 0.0 if done < 0 else min(decay, (1 + done) / (10 + done))


def average_into(averages: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    """Move float32 averages towards the weights: a <- a - (1 - decay) (a - w), in place.

    Args:
        averages: Running averages, float32; in bfloat16 small moves would be rounded away.
        weights: Weights of the same shapes, any number format, on the same device.
        decay: Memory in [0, 1]; 0 copies.
    """
    with torch.no_grad():
        for average, weight in zip(averages, weights, strict=True):
            if decay == 0.0:
                average.copy_(weight)
            else:
                average.lerp_(weight.to(torch.float32), 1.0 - decay)
