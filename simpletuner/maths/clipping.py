"""Limits for gradients; nothing here waits for the device.

The norm stays a tensor on the device of the gradients, to be read when it suits the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

ClipMethod = Literal["value", "norm"]


def gradient_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Global L2 norm of all gradients together, float32, on their device.

    Every gradient counts as one long vector; squares are summed in float32 whatever the dtype.
    """
    norms = torch._foreach_norm(list(gradients), 2, dtype=torch.float32)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def clip_gradients(gradients: Sequence[Tensor], limit: float, method: ClipMethod) -> Float[Tensor, ""]:
    """Limit `gradients` in place and return their global L2 norm from before.

    Args:
        gradients: Gradients of one optimizer step, at least one.
        limit: Threshold; 0 leaves the gradients as they are.
        method: "value" limits every element to [-limit, limit]; "norm" scales all gradients by
            min(1, limit / norm), which keeps their direction.

    Returns:
        Scalar float32 tensor on the gradients' device; not finite if any gradient is not.

    Raises:
        ValueError: If limit is negative.
    """
    if limit < 0:
        raise ValueError(f"limit must not be negative, got {limit}")
    gradients = list(gradients)
    norm = gradient_norm(gradients)
    if limit == 0:
        return norm
    if method == "value":
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
    else:
        # Dividing by the larger of the two leaves small gradients bit for bit as they were.
        torch._foreach_mul_(gradients, limit / norm.clamp(min=limit))
    return norm
