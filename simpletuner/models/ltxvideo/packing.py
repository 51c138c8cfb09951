"""Latent cells to transformer tokens and back.

LTX-Video has patch size 1, so a token is one latent cell; its index is (f * H + y) * W + x.
"""

from __future__ import annotations

from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """Latents [B, C, F, H, W] -> tokens [B, F*H*W, C]."""
    return latents.flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, latent_frames: int, latent_height: int, latent_width: int) -> Tensor:
    """Tokens [B, F*H*W, C] -> latents [B, C, F, H, W], the inverse of `pack`."""
    batch, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, channels, latent_frames, latent_height, latent_width)
