"""Pointwise losses, one value per sample, always in float32."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def squared_error(
    prediction: Float[Tensor, "batch ..."], target: Float[Tensor, "batch ..."]
) -> Float[Tensor, " batch"]:
    """Mean squared error of each sample over all its other dimensions, float32.

    The mean over samples is left to the caller, who knows how a sample is weighted.
    """
    difference = prediction.float() - target.float()
    return difference.square().flatten(1).mean(1)
