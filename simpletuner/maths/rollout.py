"""Scheduled sampling: how often, from how far, and how what the model made itself is weighed.

Tensors and numbers in, tensors and numbers out; the roll-out itself is `objectives/rollout.py`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Shape = Literal["linear", "cosine"]
Strategy = Literal["uniform", "biased_early", "biased_late"]


def ramped_chance(
    step: int, *, fixed: float, start: float, end: float, ramp_steps: int, start_step: int, shape: Shape
) -> float:
    """Chance in [0, 1] that a sample is rolled out at optimizer step `step` (from 1).

    Without a ramp it is `fixed`; with one it goes from `start` to `end` over `ramp_steps` steps. Before
    `start_step` it is 0.
    """
    if step < start_step:
        return 0.0
    if ramp_steps <= 0:
        return fixed
    progress = min(max((step - start_step) / ramp_steps, 0.0), 1.0)
    risen = progress if shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * risen


def draw_offsets(uniforms: Tensor, most: int, strategy: Strategy) -> Tensor:
    """Whole numbers [B] in 0 … `most` from uniforms [B] in [0, 1).

    "uniform": each equally often. "biased_early": near 0 more often, round(u^2 m); "biased_late": near m,
    round((1 - u^2) m).
    """
    values = uniforms.double()
    if strategy == "uniform":
        return (values * (most + 1)).floor().long().clamp_max(most)
    share = values.square() if strategy == "biased_early" else 1 - values.square()
    return (share * most).round().long()


def source_levels(sigmas: Tensor, offsets: Tensor, grid: Tensor) -> list[Tensor]:
    """The noise levels each sample passes through, from where its roll-out begins down to its own level.

    A sample at level s with offset o begins at the o-th level of the grid above s. Near pure noise there may be
    fewer levels above; then it begins at the highest, and its path is that much shorter.

    Args:
        sigmas: [B] float32 levels to arrive at.
        offsets: [B] wanted number of solver steps.
        grid: Levels of a real inference schedule in [0, 1], in any order.

    Returns:
        For each sample its levels, falling, the last one its own; one level alone where it stays where it is.
    """
    rising = grid.unique(sorted=True)
    paths = []
    for sigma, offset in zip(sigmas, offsets.tolist(), strict=True):
        above = rising[rising > sigma]
        paths.append(torch.cat([above[:offset].flip(0).to(sigma.dtype), sigma.reshape(1)]))
    return paths


def compensation_weights(clean_prediction: Tensor, rolled_prediction: Tensor, alpha: float) -> Tensor:
    """Weights like a prediction [B, …]: 1 + alpha |e| / mean |e|, e what the roll-out has changed; no gradient.

    The mean, not the sum, of |e| over a sample, so that a weight does not depend on the size of the latents: their
    mean is 1 + alpha. Where nothing has changed they are 1.

    Source: Huang et al. 2025 (arXiv 2512.04904), frequency compensation.
    """
    bias = (clean_prediction - rolled_prediction).detach().float().abs()
    mean = bias.flatten(1).mean(1).reshape(-1, *(1 for _ in range(bias.ndim - 1)))
    return 1 + alpha * torch.where(mean > 0, bias / mean.clamp_min(torch.finfo(bias.dtype).tiny), 0.0)


def drift_loss(prediction: Tensor, state: Tensor, latents: Tensor) -> Tensor:
    """Per sample [B]: squared distance between the directions of the velocity and of the way back to the latents.

    Both are scaled to length 1 over the whole sample, so the values lie in [0, 4].

    Args:
        prediction: [B, …] velocity predicted at `state`, carries the gradient.
        state: [B, …] where the roll-out has arrived.
        latents: [B, …] the clean latents.

    Source: Huang et al. 2025 (arXiv 2512.04904), anti-drift rectification.
    """
    ways = [_unit(values) for values in (prediction.float(), (state - latents).float())]
    return (ways[0] - ways[1]).square().flatten(1).sum(1)


def _unit(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    scaled: Tensor = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return scaled.reshape(values.shape)
