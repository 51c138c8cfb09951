"""The straight path between clean latents and noise, and the velocity along it.

All functions compute in float32 whatever they are given: at small noise levels bfloat16 would lose
the noise. Tensors in, tensors out; nothing here draws.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def noise_latents(
    latents: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], sigmas: Float[Tensor, " batch"]
) -> Float[Tensor, "batch ..."]:
    """Latents at noise level sigma: x = (1 - sigma) * z + sigma * noise, float32.

    Args:
        latents: Clean latents z.
        noise: Standard normal values of the same shape.
        sigmas: Noise share of each sample in [0, 1].

    Source: Liu et al. 2022 (arXiv 2209.03003), rectified flow, with time running from data to noise.
    """
    share = _per_sample(sigmas, latents)
    return (1.0 - share) * latents.float() + share * noise.float()


def velocity_target(
    latents: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."]
) -> Float[Tensor, "batch ..."]:
    """What the model learns to predict: dx / dsigma = noise - z, float32."""
    return noise.float() - latents.float()


def clean_estimate(
    noised_latents: Float[Tensor, "batch ..."],
    velocity: Float[Tensor, "batch ..."],
    sigmas: Float[Tensor, " batch"],
) -> Float[Tensor, "batch ..."]:
    """Clean latents implied by a velocity: z = x - sigma * v, float32."""
    return noised_latents.float() - _per_sample(sigmas, noised_latents) * velocity.float()


def _per_sample(sigmas: Tensor, like: Tensor) -> Tensor:
    """Reshape [batch] to [batch, 1, ...] so that it multiplies each sample of `like`."""
    return sigmas.to(torch.float32).reshape(-1, *([1] * (like.dim() - 1)))
