"""Where each token sits in time and space: the coordinates behind the rotary embedding.

Training and sampling both take their positions from here or are proven equal to it (see
`sampling.py`); a checkpoint sampled with other positions than it was trained with degrades silently.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from simpletuner.models.ltxvideo.versions import Positions

SPATIAL = 32  # pixels per latent cell
TEMPORAL = 8  # frames per latent frame


def token_coordinates(
    positions: Positions, latent_frames: int, latent_height: int, latent_width: int, frame_rates: Tensor
) -> Tensor:
    """Coordinates [B, 3, F*H*W] float32 of all tokens: (seconds, pixel row, pixel column).

    Args:
        positions: "plain": latent frame f is at 8 f / fps. "causal": at max(0, 8 f - 7) / fps, the
            first pixel frame it covers, because the first latent frame covers one frame only.
        latent_frames, latent_height, latent_width: Latent cells.
        frame_rates: [B] frames per second of each clip, above 0; the result lies on its device.

    Source: rotary positions of the LTX-Video pipelines; plain up to 0.9.1, causal from 0.9.5.
    """
    grid = _pixel_grid(positions, latent_frames, latent_height, latent_width, frame_rates.device)
    rates = frame_rates.to(torch.float32)
    # The same roundings as the reference pipelines, so that positions are equal to the last bit.
    per_unit = (TEMPORAL if positions == "plain" else 1.0) / rates
    seconds = grid[0] * per_unit[:, None]
    space = grid[1:].expand(len(rates), -1, -1)
    return torch.cat([seconds[:, None], space], dim=1)


@lru_cache(maxsize=64)
def _pixel_grid(positions: Positions, frames: int, height: int, width: int, device: torch.device) -> Tensor:
    """[3, S]: latent frame number (plain) or pixel frame number (causal), pixel row, pixel column."""
    times = torch.arange(frames, dtype=torch.float32, device=device)
    if positions == "causal":
        times = (TEMPORAL * times + 1 - TEMPORAL).clamp(min=0)
    rows = SPATIAL * torch.arange(height, dtype=torch.float32, device=device)
    columns = SPATIAL * torch.arange(width, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(times, rows, columns, indexing="ij")).flatten(1)
