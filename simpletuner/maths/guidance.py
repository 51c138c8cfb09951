"""Classifier-free guidance of a velocity."""

from __future__ import annotations

from torch import Tensor


def guide(without: Tensor, given: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """The prediction pushed away from what the model says without the prompt.

    Computes g = without + scale * (given - without). With `rescale` r, g is also given the spread of the prompted
    prediction, by that share: r * g * std(given) / std(g) + (1 - r) * g.

    Args:
        without: [B, ...] prediction for the negative prompt.
        given: [B, ...] prediction for the prompt.
        scale: 1 leaves the prompted prediction as it is.
        rescale: Share in [0, 1]; 0 leaves the guided prediction as it is.

    Source: Ho and Salimans 2022 (arXiv 2207.12598), equation 6; Lin et al. 2023 (arXiv 2305.08891), equations 15, 16.
    """
    guided = without + scale * (given - without)
    if rescale == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    spread = given.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return rescale * guided * spread + (1 - rescale) * guided
