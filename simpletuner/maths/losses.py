"""Pointwise losses, one value per sample, always in float32."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def squared_error(
    prediction: Float[Tensor, "batch ..."],
    target: Float[Tensor, "batch ..."],
    weights: Float[Tensor, "batch ..."] | None = None,
) -> Float[Tensor, " batch"]:
    """Mean squared error of each sample over all its other dimensions, float32; each square times its weight.

    The mean over samples is left to the caller, who knows how a sample is weighted.
    """
    squares = (prediction.float() - target.float()).square()
    return (squares if weights is None else squares * weights).flatten(1).mean(1)


def huber(
    prediction: Float[Tensor, "batch ..."], target: Float[Tensor, "batch ..."], thresholds: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Pseudo-Huber loss 2c (sqrt(d^2 + c^2) - c), mean per sample: d^2 for small d, 2c|d| for large.

    Args:
        thresholds: c of each sample, above 0.

    Source: Charbonnier et al. 1997; with c by noise level Khrapov et al. 2024 (arXiv 2403.16728).
    """
    return 2 * thresholds * _rounded_distance(prediction, target, thresholds)


def smooth_l1(
    prediction: Float[Tensor, "batch ..."], target: Float[Tensor, "batch ..."], thresholds: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """2 (sqrt(d^2 + c^2) - c), mean per sample: d^2 / c for small d, 2|d| for large; see `huber`."""
    return 2 * _rounded_distance(prediction, target, thresholds)


def huber_thresholds(sigmas: Float[Tensor, " batch"], smallest: float, course: str) -> Float[Tensor, " batch"]:
    """Threshold c of each sample by its noise level.

    Args:
        sigmas: Noise levels in [0, 1].
        smallest: c at pure noise, in (0, 1] for the two courses that fall from 1 at no noise.
        course: "constant" keeps `smallest`; "exponential" is smallest^sigma; "snr" is
            (1 - smallest) (1 - sigma)^2 + smallest.

    Source: Khrapov et al. 2024 (arXiv 2403.16728), section 3, with the path's sigma / (1 - sigma) as the
    ratio of noise to signal.
    """
    if course == "constant":
        return torch.full_like(sigmas, smallest)
    if course == "exponential":
        return torch.exp(sigmas * math.log(smallest))
    if course == "snr":
        return (1 - smallest) * (1 - sigmas).square() + smallest
    raise ValueError(f"there is no course '{course}' of Huber's threshold")


def _rounded_distance(prediction: Tensor, target: Tensor, thresholds: Tensor) -> Tensor:
    c = thresholds.to(prediction.device, torch.float32).reshape(-1, *([1] * (prediction.dim() - 1)))
    difference = prediction.float() - target.float()
    # sqrt(d^2 + c^2) - c, written so that small distances do not cancel.
    squared = difference.square()
    return (squared / ((squared + c.square()).sqrt() + c)).flatten(1).mean(1)
