"""Noise levels: how they are distributed and how they are moved.

Functions turn draws that somebody else made into noise levels, so that they know nothing of seeds,
devices or configuration. The walk goes on in `objectives/flow_matching.py`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Lightricks' timestep sampler for LTX-Video (shifted logit-normal): exponent at the two token counts.
# These are ours on purpose: scheduler files of later releases carry generic constants instead.
MIN_TOKENS = 1024
MAX_TOKENS = 4096
MIN_EXPONENT = 0.95
MAX_EXPONENT = 2.05


def logit_normal_sigmas(normals: Float[Tensor, " batch"], scale: float = 1.0) -> Float[Tensor, " batch"]:
    """Turn standard normal draws n into noise levels sigmoid(scale * n), a bell around 0.5.

    Args:
        normals: Standard normal draws.
        scale: Width of the bell, above 0; 1 is the usual logit-normal.

    Returns:
        Noise levels in [0, 1] with median 0.5.

    Source: Esser et al. 2024 (arXiv 2403.03206), section 3.1, with m = 0 and s = `scale`.
    """
    return torch.sigmoid(scale * normals)


def shift_sigmas(sigmas: Float[Tensor, " batch"], shift: float) -> Float[Tensor, " batch"]:
    """Move noise levels towards noise (shift above 1) or towards detail (below 1).

    Computes shift * s / (1 + (shift - 1) * s) = sigmoid(logit(s) + ln shift); 0 and 1 stay where
    they are, and a median of 0.5 becomes shift / (1 + shift).

    Args:
        sigmas: Noise share of each sample in [0, 1]; 0 is clean, 1 is pure noise.
        shift: Multiplier of the odds s / (1 - s), above 0, no unit.

    Raises:
        ValueError: If shift is not above 0.

    Source: Esser et al. 2024 (arXiv 2403.03206), resolution-dependent shifting, equation 23.
    """
    if not shift > 0:
        raise ValueError(f"shift must be above 0, got {shift}")
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def shift_exponent(num_tokens: int) -> float:
    """Exponent mu of the automatic shift, linear in the token count and clamped to [0.95, 2.05].

    Without the clamp a clip of 6144 tokens would get a shift of 16, which leaves next to no draws
    at low noise.

    Args:
        num_tokens: Latent cells of one clip (latent frames * height * width; the patch size is 1).

    Source: Lightricks' shifted logit-normal sampler: 0.95 at 1024 tokens, 2.05 at 4096.
    """
    slope = (MAX_EXPONENT - MIN_EXPONENT) / (MAX_TOKENS - MIN_TOKENS)
    exponent = MIN_EXPONENT + slope * (num_tokens - MIN_TOKENS)
    return min(max(exponent, MIN_EXPONENT), MAX_EXPONENT)


def auto_shift(num_tokens: int) -> float:
    """Shift for a clip of `num_tokens` latent cells: e to the power of `shift_exponent`."""
    return math.exp(shift_exponent(num_tokens))
